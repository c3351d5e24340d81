"""Rank-one experts by product keys against few large experts of equal size: quality and time."""

import argparse
import time
from typing import Any

import lightning
from compare import predict, trained
from frame import MIXTURE, Experiment, Found

SITES = r".*\.(query|value)"
_ATOMS: dict[str, Any] = {"method": "atoms", "num_experts": 1024, "r": 1, "alpha": 16.0}
VARIANTS: dict[str, dict[str, Any]] = {
    "1,024 experts of rank 1, 16 per token": _ATOMS | {"selector": {"name": "product_top_k", "k": 16}},
    "the same, random experts per token id": _ATOMS
    | {"scorer": "random_fixed", "selector": {"name": "top_k", "k": 16}},
    "8 experts of rank 128, 2 per token": {"method": "top_k", "num_experts": 8, "r": 128, "alpha": 256.0},
    "8 experts of rank 16, 2 per token": {"method": "top_k", "num_experts": 8, "r": 16, "alpha": 32.0},
    "LoRA of rank 1,024": {"method": "lora", "r": 1024, "alpha": 2048.0},
}


def measure(seed: int, args: argparse.Namespace) -> Found:
    """Train and test every variant; times are processor time in this one process."""
    found: Found = {}
    for name, options in VARIANTS.items():
        lightning.seed_everything(seed, verbose=False)
        module, data, facts = trained(options, seed, args, SITES)
        start = time.process_time()
        accuracy = predict(module, data)["mean"]
        found[name] = {
            "accuracy": accuracy,
            "parameters": facts["trainable_parameters"] / 1e6,
            "step": facts["cpu_seconds_per_step"],
            "test": time.process_time() - start,
        }
    whole = found["LoRA of rank 1,024"]
    for row in found.values():
        row["step_ratio"], row["test_ratio"] = (row[key] / whole[key] for key in ("step", "test"))  # type: ignore[operator]
    return found


EXPERIMENTS = {
    "rank_one": Experiment(
        title="1,024 experts of rank one by product keys (OmniMoE)",
        text="On query and value of MiniLM, one epoch of the mixture. 1,024 experts of rank 1 with 16 per "
        "token have as many numbers as 8 of rank 128 with 2 per token. Time is processor time relative to "
        "LoRA of rank 1,024.",
        measure=measure,
        heads={
            "accuracy": "accuracy",
            "parameters": "parameters (millions)",
            "step_ratio": "time of a step",
            "test_ratio": "time of a test",
        },
        settings=MIXTURE | {"epochs": 1},
        baseline="LoRA of rank 1,024",
    )
}
