"""Rank-one experts by product keys against few large experts, at equal expert parameters: quality and time.

    python benchmarks/routed_lora/rank_one.py --data $MOE_ADAPT_DATA --backbone PREPARED/minilm --runs RUNS

1,024 experts of rank 1 with 16 per token have as many numbers as 8 experts of rank 128 with 2 per token; 8
experts of rank 16 have an eighth of them. All on query and value, one epoch of the comparison's mixture; none
of the settings was chosen on test rows. The result is ``benchmarks/results/rank_one.json``.
"""

import argparse
import time
from pathlib import Path
from typing import Any

from cells import run_cells, write_report
from compare import predict, routing, trained

RESULT = Path(__file__).resolve().parents[1] / "results" / "rank_one.json"
SITES = r".*\.(query|value)"
_ATOMS = {"method": "atoms", "num_experts": 1024, "r": 1, "alpha": 16.0}
_KEYS = {"name": "product_top_k", "k": 16}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "atoms": ("1,024 experts of rank 1, 16 per token", _ATOMS | {"selector": _KEYS}),
    "atoms_random": (
        "the same, random experts per token id",
        _ATOMS | {"scorer": "random_fixed", "selector": {"name": "top_k", "k": 16}},
    ),
    "large": (
        "8 experts of rank 128, 2 per token",
        {"method": "top_k", "num_experts": 8, "r": 128, "alpha": 256.0},
    ),
    "small": (
        "8 experts of rank 16, 2 per token",
        {"method": "top_k", "num_experts": 8, "r": 16, "alpha": 32.0},
    ),
    "lora": ("LoRA of rank 1,024", {"method": "lora", "r": 1024, "alpha": 2048.0}),
}


def cell(name: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Train and test one variant with one seed."""
    module, data, facts = trained(VARIANTS[name][1], seed, args, SITES)
    start = time.process_time()
    accuracy = predict(module, data)
    seconds = time.process_time() - start
    result = {"accuracy": accuracy, "test_cpu_seconds": seconds} | facts
    return result if name == "lora" else result | {"routing": routing(module, data)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the raw files")
    parser.add_argument("--backbone", type=Path, required=True, help="folder of the encoder")
    parser.add_argument("--runs", type=Path, required=True, help="folder for one file per cell")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), help="which variants")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--collect", action="store_true", help="run nothing, gather the cells that are there")
    args = parser.parse_args()
    settings = {"train": 200, "test": 200, "epochs": 1, "batch": 16, "max_length": 40, "lr": 1e-3}
    vars(args).update(settings)
    command = "routed_lora/rank_one.py --data DATA --backbone PREPARED/minilm --runs RUNS"
    if not args.collect:
        cells = [(name, seed) for seed in args.seeds for name in args.variants]
        run_cells(cells, args.runs, cell, args, command, settings)
    labels = {name: label for name, (label, _) in VARIANTS.items()}
    wanted = [(name, seed) for name in VARIANTS for seed in args.seeds]
    write_report(RESULT, wanted, args.runs, labels, command, settings)


if __name__ == "__main__":
    main()
