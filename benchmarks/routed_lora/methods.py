"""The methods of the comparison, at equal trainable parameters.

At a layer of `d` inputs and `o` outputs, `E` experts of rank `r` with a linear router have
`E r (d + o) + E d` parameters. The yardstick is `E = 8`, `r = 4` with a linear router; over the layers of
a transformer block that is a plain LoRA of rank 36. Methods without a trained router get a ninth expert,
which is the same number; the others the numbers that come nearest. The table prints the exact counts.
Experts that share one LoRA get more rank instead: its scale stays 2 as that of the others.
"""

from collections.abc import Callable
from typing import Any

from moe_adapt.training.procedures import Procedure, TwoPass

__all__ = ["CONTROLS", "METHODS", "PROCEDURES"]

_EIGHT: dict[str, Any] = {"num_experts": 8, "r": 4, "alpha": 8.0}
_THOR: dict[str, Any] = {"method": "thor", "num_experts": 2, "r": 18, "alpha": 36.0}
_NINE: dict[str, Any] = {"num_experts": 9, "r": 4, "alpha": 8.0}


def _mixer(sign: float, hard_until: float = 0.5) -> dict[str, Any]:
    return {
        "method": "lora_mixer",
        "num_experts": 5,
        "r": 7,
        "alpha": 14.0,
        "selector": {"name": "hard_soft", "k": 3, "hard_until": hard_until},
        "aux_losses": [{"name": "specialization_balance", "entropy_coef": sign * 1e-2}],
    }


#: Label in the table, and options of `RoutedLoraConfig`.
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora_equal": ("LoRA, equal parameters", {"method": "lora", "r": 36, "alpha": 72.0}),
    "lora_mixer": ("LoRA-Mixer, entropy sharpened", _mixer(+1)),
    "lora_mixer_printed": ("LoRA-Mixer, entropy as printed", _mixer(-1)),
    "lora_mixer_soft": ("LoRA-Mixer, soft stage alone", _mixer(+1, hard_until=0.0)),
    "dynmole": ("DynMoLE", {"method": "dynmole", **_EIGHT}),
    "condenser": ("condenser", {"method": "condenser", **_EIGHT}),
    "condenser_bias": ("condenser, first phase alone", {"method": "condenser_bias", **_EIGHT}),
    "soft": ("soft mixture", {"method": "soft", **_EIGHT}),
    "top_k": ("top-k", {"method": "top_k", **_EIGHT}),
    "mola": (
        "MoLA, 3 to 13 experts by depth",
        {"method": "mola", **_EIGHT, "num_experts": [3, 5, 7, 9, 11, 13]},
    ),
    "top_p": ("top-p", {"method": "nucleus", **_EIGHT}),
    "hydralora": ("HydraLoRA", {"method": "hydralora", "num_experts": 8, "r": 7, "alpha": 14.0}),
    "ld_mole": ("sparsegen (LD-MoLE)", {"method": "ld_mole", **_EIGHT}),
    "adamoe": (
        "null experts (AdaMoE)",
        {
            "method": "adamoe",
            "num_experts": 7,
            "r": 4,
            "alpha": 8.0,
            "selector": {"name": "null_experts", "k": 4, "nulls": 7},
        },
    ),
    "cosine": ("cosine router", {"method": "cosine", **_EIGHT}),
    "arrow": (
        "Arrow, experts trained by label",
        {
            "method": "arrow",
            "num_experts": 5,
            "r": 7,
            "alpha": 14.0,
            "selector": {"name": "hard_soft", "k": 3, "hard_until": 1.0},
        },
    ),
    "k_means": ("K-means router", {"method": "k_means", **_NINE}),
    "smoe_dropout": (
        "SMoE-Dropout",
        {"method": "smoe_dropout", **_NINE, "selector": {"name": "growing_top_k", "k_min": 4, "k_max": 9}},
    ),
    "thor": ("THOR, two passes", _THOR),
    "router_coupling": (
        "top-k with the ERC loss",
        {
            "method": "top_k",
            **_EIGHT,
            "aux_losses": [{"name": "load_balance", "weight": 0.001}, "router_coupling"],
        },
    ),
    "bip": ("BIP balancing", {"method": "bip", **_EIGHT}),
    "film": ("FiLM experts (MoFME)", {"method": "film", "num_experts": 8, "r": 32, "alpha": 64.0}),
    "chain": ("Chain of Experts", {"method": "chain", "num_experts": 8, "r": 27, "alpha": 54.0}),
    "slices": (
        "slices of one LoRA (Union of Experts)",
        {
            "method": "slices",
            "num_experts": 8,
            "r": 32,
            "alpha": 64.0,
            "selector": {"name": "on_off", "k": 4},
        },
    ),
    "atoms": (
        "rank-one experts by product keys (OmniMoE)",
        {"method": "atoms", "num_experts": [36, 25, 36, 25, 36, 25], "r": 1, "alpha": 8.0},
    ),
    "unipool": (
        "UniPool, 34 experts per shape of layer",
        {"method": "unipool", "num_experts": 34, "r": 4, "alpha": 8.0},
    ),
    "rexmoe": (
        "ReXMoE, 14 experts per two layers",
        {"method": "rexmoe", "num_experts": 14, "r": 4, "alpha": 8.0},
    ),
    "rmoe": (
        "recurrent router (RMoE)",
        {"method": "rmoe", **_EIGHT, "scorer": {"name": "recurrent", "width": 8}},
    ),
    "read_me": (
        "one gate before all layers (Read-ME)",
        {"method": "read_me", **_NINE, "scorer": {"name": "pre_gate", "width": 64}},
    ),
}

#: How a method is trained, where that is not one pass and the task loss.
PROCEDURES: dict[str, Callable[[], Procedure]] = {"thor": TwoPass}

#: The rows without which no gain can be credited to routing.
CONTROLS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora_small": ("LoRA, rank 4", {"method": "lora", "r": 4, "alpha": 8.0}),
    # Its scale is that of rank 4 (2 = alpha / sqrt(4)) carried over to rank 36 by rsLoRA's rule.
    "rslora_equal": (
        "rsLoRA, equal parameters",
        {"method": "lora", "r": 36, "alpha": 4.0, "use_rslora": True},
    ),
    "uniform_dense": ("uniform gates", {"method": "uniform_dense", **_NINE}),
    "random_fixed": ("random experts per token", {"method": "random_fixed", **_NINE}),
    "hash": ("hash of the token", {"method": "hash", **_NINE}),
    "router_frozen": ("frozen random router", {"method": "router_frozen", **_NINE}),
}
