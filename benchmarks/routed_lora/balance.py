"""How even the load of the experts is in training: BIP balancing against a balance loss and nothing.

    python benchmarks/routed_lora/balance.py --data $MOE_ADAPT_DATA --backbone PREPARED/minilm --runs RUNS

One epoch of the comparison's mixture in batches of 64 texts, about a thousand tokens, which the assignment
needs. MaxVio is the load of the fullest expert over the mean, less 1, at each site and step. The result is
``benchmarks/results/bip_balance.json``.
"""

import argparse
import statistics
from pathlib import Path
from typing import Any

from cells import run_cells, write_report
from compare import predict, routing, trained
from lightning import Callback

RESULT = Path(__file__).resolve().parents[1] / "results" / "bip_balance.json"
_EIGHT: dict[str, Any] = {"num_experts": 8, "r": 4, "alpha": 8.0}


def _bip(rounds: int) -> dict[str, Any]:
    modifier = {"name": "bip_balance", "k": 2, "rounds": rounds}
    return {"method": "bip", **_EIGHT, "modifiers": [modifier]}


def _top_k(*losses: dict[str, Any]) -> dict[str, Any]:
    return {"method": "top_k", **_EIGHT, "aux_losses": list(losses)}


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "none": ("top-k, nothing balances", _top_k()),
    "load_balance": ("top-k, load_balance 1e-3", _top_k({"name": "load_balance", "weight": 1e-3})),
    "load_balance_strong": ("top-k, load_balance 1e-2", _top_k({"name": "load_balance", "weight": 1e-2})),
    "bip_4": ("BIP, 4 rounds (the preset)", _bip(4)),
    "bip_8": ("BIP, 8 rounds", _bip(8)),
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


def cell(name: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Train and test one variant with one seed."""
    load = Load()
    module, data, facts = trained(VARIANTS[name][1], seed, args, callbacks=[load])
    return {
        "accuracy": predict(module, data),
        "max_violation": load.max_violation,
        "tokens": load.tokens,
        "routing": routing(module, data),
    } | facts


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the raw files")
    parser.add_argument("--backbone", type=Path, required=True, help="folder of the encoder")
    parser.add_argument("--runs", type=Path, required=True, help="folder for one file per cell")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--collect", action="store_true", help="run nothing, gather the cells that are there")
    args = parser.parse_args()
    settings = {"train": 200, "test": 200, "epochs": 1, "batch": 64, "max_length": 40, "lr": 1e-3}
    vars(args).update(settings)
    command = "routed_lora/balance.py --data DATA --backbone PREPARED/minilm --runs RUNS"
    if not args.collect:
        cells = [(name, seed) for seed in args.seeds for name in VARIANTS]
        run_cells(cells, args.runs, cell, args, command, settings)
    labels = {name: label for name, (label, _) in VARIANTS.items()}
    wanted = [(name, seed) for name in VARIANTS for seed in args.seeds]
    write_report(RESULT, wanted, args.runs, labels, command, settings)


if __name__ == "__main__":
    main()
