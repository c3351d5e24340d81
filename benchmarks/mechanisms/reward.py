"""Experts and answers taught by reward, after training with labels (MoE-GRPO)."""

import argparse
from typing import Any

import lightning
from cells import train
from compare import predict
from frame import EIGHT, MIXTURE, Experiment, Found, base, loaded

from moe_adapt.training.procedures import GatePolicy

DRAWN: dict[str, Any] = EIGHT | {"method": "gate_policy"}


def measure(seed: int, args: argparse.Namespace) -> Found:
    """Go on for one epoch in every way from the same trained adapter."""
    tensors, data = base(seed, args)
    found: Found = {
        "trained with labels": {
            "accuracy": predict(loaded(tensors, data, seed, args, DRAWN), data)["mean"],
            "step": None,
        }
    }
    rollouts: dict[str, Any] = {"rollouts": args.rollouts, "updates": 1}
    for label, procedure in (
        ("one more epoch with labels", None),
        ("by reward, answers and gates", GatePolicy(**rollouts)),
        ("by reward, gates alone", GatePolicy(**rollouts, answer_weight=0.0)),
    ):
        module = loaded(tensors, data, seed, args, DRAWN, procedure=procedure)
        module.lr = args.reward_lr if procedure is not None else args.lr
        lightning.seed_everything(seed, verbose=False)
        facts = train(module, data, 1)
        found[label] = {"accuracy": predict(module, data)["mean"], "step": facts["cpu_seconds_per_step"]}
    plain = found["one more epoch with labels"]["step"]
    for row in found.values():
        row["step"] = None if row["step"] is None else row["step"] / plain  # type: ignore[operator]
    return found


EXPERIMENTS = {
    "reward": Experiment(
        title="Reward on multiple choice (MoE-GRPO)",
        text="Top-k with 8 experts, two epochs on the mixture (MiniLM), whose 20 answers are the choices. "
        "Then one epoch more: with labels, by reward for a right answer (4 rollouts, learning rate 1e-4), "
        "or by reward through the gates alone.",
        measure=measure,
        heads={"accuracy": "accuracy", "step": "time of a step"},
        settings=MIXTURE | {"rollouts": 4, "reward_lr": 1e-4},
        baseline="trained with labels",
    )
}
