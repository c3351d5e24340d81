"""How even the load of the experts is in training: BIP balancing against a balance loss and nothing."""

import argparse
import statistics
from typing import Any

import lightning
from compare import predict, trained
from frame import EIGHT, MIXTURE, Experiment, Found
from lightning import Callback


def _bip(rounds: int) -> dict[str, Any]:
    return EIGHT | {
        "method": "bip",
        "modifiers": [{"name": "bip_balance", "k": 2, "rounds": rounds}],
    }


def _top_k(*losses: dict[str, Any]) -> dict[str, Any]:
    return EIGHT | {"aux_losses": list(losses)}


VARIANTS = {
    "top-k, nothing balances": _top_k(),
    "top-k, load_balance 1e-2": _top_k({"name": "load_balance", "weight": 1e-2}),
    "BIP, 4 rounds (the preset)": _bip(4),
    "BIP, 8 rounds": _bip(8),
}


class Load(Callback):
    """MaxVio of every training step, the mean over sites, and the tokens that it was measured on."""

    def __init__(self) -> None:
        self.max_violation: list[float] = []
        self.tokens: list[int] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, *args: Any) -> None:
        """Note the load of the forward that has just been."""
        loads = [stats.load for stats in pl_module.tuner.routing_stats().values()]
        self.max_violation.append(statistics.mean(float(load.max() * len(load)) - 1 for load in loads))
        self.tokens.append(int(batch["attention_mask"].sum()))


def measure(seed: int, args: argparse.Namespace) -> Found:
    """Train and test every variant."""
    found: Found = {}
    for name, options in VARIANTS.items():
        load = Load()
        lightning.seed_everything(seed, verbose=False)
        module, data, _ = trained(options, seed, args, callbacks=[load])
        found[name] = {
            "mean": statistics.mean(load.max_violation),
            "first": load.max_violation[0],
            "last": load.max_violation[-1],
            "tokens": statistics.mean(load.tokens),
            "accuracy": predict(module, data)["mean"],
        }
    return found


EXPERIMENTS = {
    "balance": Experiment(
        title="Load of the experts in one epoch (BIP)",
        text="Top-k with 8 experts on the mixture (MiniLM), one epoch in batches of 64 texts. MaxVio is "
        "the load of the fullest expert over the mean, less 1, mean over layers.",
        measure=measure,
        heads={
            "mean": "MaxVio, all steps",
            "first": "first step",
            "last": "last step",
            "tokens": "tokens per step",
            "accuracy": "accuracy",
        },
        settings=MIXTURE | {"train": 100, "epochs": 1, "batch": 64},
        baseline="top-k, nothing balances",
        judged="mean",
        margin=0.1,
    )
}
