"""Method presets: what `RoutedLoraConfig(method=...)` fills in where the caller says nothing.

A preset is data. Target groups (`"ffn"`, `"attention"`) are resolved against the base model in
`moe_adapt.tuner.targets`.
"""

from typing import Any

__all__ = ["PRESETS"]

_COMMON: dict[str, Any] = {
    "num_experts": 8,
    "r": 8,
    "alpha": 16.0,
    "dropout": 0.05,
    "target_modules": None,
    "scorer": {"name": "linear"},
    "modifiers": [],
    "aux_losses": [],
}

PRESETS: dict[str, dict[str, Any]] = {
    # One LoRA per site, bit-equal to PEFT's LoRA: the baseline of every comparison.
    "lora": {
        **_COMMON,
        "num_experts": 1,
        "scorer": {"name": "uniform"},
        "selector": {"name": "dense"},
    },
    # Every expert for every token, weighted by a softmax.
    "soft": {**_COMMON, "selector": {"name": "dense"}},
    # The two best experts per token, renormalised, with the Switch balance loss.
    "top_k": {
        **_COMMON,
        "selector": {"name": "top_k", "k": 2},
        "aux_losses": [{"name": "load_balance", "weight": 1e-3}],
    },
    # As many experts as it takes to gather 75 % of the probability.
    "top_p": {
        **_COMMON,
        "selector": {"name": "top_p", "top_p": 0.75},
        "aux_losses": [{"name": "load_balance", "weight": 1e-3}],
    },
    # DynMoLE (arXiv 2504.00661), values of the released code; experts on the feed-forward layers.
    "dynmole": {
        **_COMMON,
        "num_experts": 6,
        "r": 24,
        "alpha": 48.0,
        "target_modules": "ffn",
        "selector": {"name": "dynmole"},
        "aux_losses": [
            {"name": "entropy", "weight": 1e-2, "q": 1.1, "eps": 1e-5},
            {"name": "load_balance", "weight": 1e-3, "assignment": "gates", "scope": "global"},
        ],
    },
}
