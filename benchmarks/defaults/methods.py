"""What the study compares: starts of the head, and methods with their ranks and layers."""

from typing import Any

__all__ = ["IMAGE_METHODS", "METHODS", "STARTS"]

#: Start of the head: kind, weight decay of the probe (None: chosen on training rows), learning rate.
STARTS: dict[str, tuple[str, float | None, float]] = {
    "random, 1e-2": ("random", None, 1e-2),
    "probe, 1e-3": ("probe", None, 1e-3),
    "soft probe, 1e-2": ("probe", 1.0, 1e-2),
}

SMALL = {"num_experts": 6, "r": 4, "alpha": 8}

#: Method: arguments of the tuner and learning rate.
METHODS: dict[str, tuple[dict[str, Any], float]] = {
    "DynMoLE 6 x 24, ffn": ({"method": "dynmole"}, 5e-4),
    "DynMoLE 6 x 4, ffn": ({"method": "dynmole", **SMALL}, 1e-3),
    "top-k 6 x 4, ffn": ({"method": "top_k", "target_modules": "ffn", **SMALL}, 1e-3),
    "top-k 6 x 4, attention": ({"method": "top_k", "target_modules": "attention", **SMALL}, 1e-3),
    "LoRA r 8, ffn": ({"method": "lora", "target_modules": "ffn"}, 1e-3),
}

#: Methods that are tried on images, where a cell costs most.
IMAGE_METHODS = ("DynMoLE 6 x 24, ffn", "top-k 6 x 4, ffn", "LoRA r 8, ffn")
