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
    "shared_a": False,
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
    # MoLA (arXiv 2402.08562): more experts in later blocks, on every linear layer; its balance loss is
    # optional, the weight here is that of top_k.
    "mola": {
        **_COMMON,
        "num_experts": [2, 4, 6, 8],
        "target_modules": "all-linear",
        "selector": {"name": "top_k", "k": 2},
        "aux_losses": [{"name": "load_balance", "weight": 1e-3}],
    },
    # LD-MoLE (arXiv 2509.25684) with constant sparsity: sparse gates without a fixed number of experts.
    "ld_mole": {
        **_COMMON,
        "selector": {"name": "sparsegen", "lam": 0.0},
        "aux_losses": [{"name": "load_balance", "weight": 1.0}],
    },
    # AdaMoE (arXiv 2406.13233): as many null experts as true ones; two true experts per token when balanced.
    "adamoe": {
        **_COMMON,
        "selector": {"name": "null_experts", "k": 4, "nulls": 8},
        "aux_losses": [{"name": "load_balance", "weight": 1e-3}],
    },
    # Cosine to a learned direction per expert (arXiv 2604.14419).
    "cosine": {
        **_COMMON,
        "scorer": {"name": "cosine"},
        "selector": {"name": "top_k", "k": 2},
        "aux_losses": [{"name": "load_balance", "weight": 1e-3}],
    },
    # DyMoE (arXiv 2603.27481) for small models: four experts per task on every linear layer. Its learner
    # adds the experts of later tasks; the paper has 16 of rank 4 and k=16.
    "dymoe": {
        **_COMMON,
        "num_experts": 4,
        "r": 4,
        "alpha": 8.0,
        "target_modules": "all-linear",
        "scorer": {"name": "cosine", "temperature": 1.0, "learn_temperature": False},
        "modifiers": [{"name": "token_assignment", "tau": 0.2}, {"name": "temperature", "temperature": 0.01}],
        "selector": {"name": "top_k", "k": 4},
        "aux_losses": [{"name": "routing_separation", "weight": 1e-3}],
    },
    # The same layer without guidance and regularisation: the paper's own baseline.
    "inc_moelora": {
        **_COMMON,
        "num_experts": 4,
        "r": 4,
        "alpha": 8.0,
        "target_modules": "all-linear",
        "scorer": {"name": "cosine", "temperature": 1.0, "learn_temperature": False},
        "modifiers": [{"name": "temperature", "temperature": 0.01}],
        "selector": {"name": "top_k", "k": 4},
    },
    # LoRAs of several tasks added up (O-LoRA, arXiv 2310.14152); its learner adds one per task.
    "lora_sum": {**_COMMON, "num_experts": 1, "scorer": {"name": "uniform"}, "selector": {"name": "sum"}},
    # Cosine to the running mean of each expert's tokens; nothing to train.
    "k_means": {**_COMMON, "scorer": {"name": "k_means"}, "selector": {"name": "top_k", "k": 2}},
    # LoRA-Mixer (arXiv 2507.00029): by domain label, then soft, at inference the three best; the entropy term
    # sharpens. Coefficients are ours, the paper's are not known.
    "lora_mixer": {
        **_COMMON,
        "num_experts": 6,
        "target_modules": "attention",
        "selector": {"name": "hard_soft", "k": 3, "hard_until": 0.5},
        "aux_losses": [{"name": "specialization_balance", "balance_coef": 1e-3, "entropy_coef": 1e-2}],
    },
    # Condenser experts (arXiv 2604.23036): its first phase alone, the bias that lets rich experts get richer,
    "condenser_bias": {
        **_COMMON,
        "modifiers": [{"name": "condense_bias", "gamma": 1e-3}],
        "selector": {"name": "condenser", "k": 4},
    },
    # and both phases: from half of the steps on, the two rarest experts are on for every token.
    "condenser": {
        **_COMMON,
        "modifiers": [
            {
                "name": "condense_bias",
                "gamma": 1e-3,
                "condensers": 2,
                "condense_from": 0.5,
                "gamma_condensed": 5e-5,
            }
        ],
        "selector": {"name": "condenser", "k": 4, "budget": "replace"},
    },
    # HydraLoRA (arXiv 2404.19245): one A, four heads B, softmax gates; values of the released code.
    "hydralora": {
        **_COMMON,
        "num_experts": 4,
        "r": 4,
        "alpha": 32.0,
        "target_modules": "ffn",
        "shared_a": True,
        "selector": {"name": "dense"},
    },
    # Arrow (arXiv 2405.11157): routing by each expert's leading direction, nothing to train in the router.
    "arrow": {**_COMMON, "scorer": {"name": "arrow"}, "selector": {"name": "top_k", "k": 3}},
    # The controls, without which no gain can be credited to routing. All experts, equally.
    "uniform_dense": {**_COMMON, "scorer": {"name": "uniform"}, "selector": {"name": "dense"}},
    # Two random experts per token id.
    "random_fixed": {
        **_COMMON,
        "scorer": {"name": "random_fixed", "seed": 0},
        "selector": {"name": "top_k", "k": 2},
    },
    # One expert per token id.
    "hash": {**_COMMON, "scorer": {"name": "hash"}, "selector": {"name": "top_k", "k": 1}},
    # SMoE-Dropout (arXiv 2303.01610): a random linear router, and half to all of the experts per token.
    "smoe_dropout": {
        **_COMMON,
        "scorer": {"name": "frozen_linear"},
        "selector": {"name": "growing_top_k", "k_min": 4, "k_max": 8},
    },
    # The same router with a constant number of experts.
    "router_frozen": {
        **_COMMON,
        "scorer": {"name": "frozen_linear"},
        "selector": {"name": "top_k", "k": 2},
    },
}
