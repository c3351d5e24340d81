"""Forget one of five tasks of texts, with and without the guard of the routers.

    python benchmarks/recipes/prepare.py --data $MOE_ADAPT_DATA --to PREPARED minilm
    python benchmarks/routed_lora/unlearning.py --data $MOE_ADAPT_DATA --backbone PREPARED/minilm --runs RUNS

The method top_k is trained on the mixture of the comparison (`compare.py`); then it forgets the training rows
of CLINC150 and retains those of the other four tasks. Judged on: the rows to forget, test rows of the four
tasks, and test rows of CLINC150 as unseen ones, for the attack. Each cell starts from the same trained
adapter. The result is ``benchmarks/results/unlearning.json``.
"""

import argparse
import copy
from pathlib import Path
from typing import Any

import torch
from cells import run_cells, train, write_report
from compare import SITES
from methods import METHODS
from tasks import mixture

from moe_adapt.runs.unlearn import unlearn
from moe_adapt.training.datamodules import TextClassificationData
from moe_adapt.training.modules import SequenceClassifier
from moe_adapt.training.procedures import Unlearn
from moe_adapt.tuner import RoutedLoraConfig

RESULT = Path(__file__).resolve().parents[1] / "results" / "unlearning.json"
TASK = "clinc"
LABELS = {"guard": "ascent, routers guarded", "free": "ascent, routers free"}


def trained(seed: int, args: argparse.Namespace, rows: dict[str, list[dict[str, Any]]]) -> Any:
    """Return the module trained on all five tasks, from a file if a cell has trained it already."""
    data = text_data(args, rows["train"], seed=seed)
    options = METHODS["top_k"][1]
    config = RoutedLoraConfig(target_modules=SITES, **options)
    module = SequenceClassifier(
        str(args.backbone), data.num_classes, config, lr=args.lr, head_lr=1e-2, schedule="cosine", warmup=0.06
    )
    path = args.runs / f"trained-{seed}.pt"
    if not path.is_file():
        train(module, data, epochs=2)
        own = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}
        torch.save(own, path)
    module.load_state_dict(torch.load(path, weights_only=True), strict=False)
    return module, data.class_names


def text_data(
    args: argparse.Namespace, rows: Any, names: list[str] | None = None, test: bool = False, **options: Any
) -> TextClassificationData:
    """Return a data module over rows, set up."""
    part = {"test": rows} if test else {"train": rows}
    shared = {"validation_fraction": 0.0, "max_length": 40, "batch_size": 16}
    data = TextClassificationData(str(args.backbone), class_names=names, **part, **shared, **options)
    data.setup("test" if test else "fit")
    return data


def cell(name: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Forget one task and judge."""
    rows = mixture(args.data, args.train, args.test)
    module, names = trained(seed, args, rows)
    gone = [row for row in rows["train"] if row["task"] == TASK]
    kept = [row for row in rows["train"] if row["task"] != TASK]
    both = [row | {"part": "forget"} for row in gone] + [row | {"part": "retain"} for row in kept]
    judged = {
        "forget": gone,
        "retain": [row for row in rows["test"] if row["task"] != TASK],
        "unseen": [row for row in rows["test"] if row["task"] == TASK],
    }
    data = {part: text_data(args, copy.copy(found), names, test=True) for part, found in judged.items()}
    training = text_data(args, both, names, domain_column="part", seed=seed)
    module.schedule, module.warmup = "constant", 0.0
    procedure = Unlearn("forget", guard=name == "guard", max_inputs=args.max_inputs)
    return unlearn(module, training, data, procedure, args.epochs, seed)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the raw files")
    parser.add_argument("--backbone", type=Path, required=True, help="folder of the encoder")
    parser.add_argument("--runs", type=Path, required=True, help="folder for one file per cell")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--train", type=int, default=200, help="training rows per task")
    parser.add_argument("--test", type=int, default=200, help="test rows per task")
    parser.add_argument("--epochs", type=int, default=1, help="passes of unlearning")
    parser.add_argument("--max_inputs", type=int, default=128, help="inputs per layer to guard")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--collect", action="store_true", help="run nothing, gather the cells that are there")
    args = parser.parse_args()
    cells = [(name, seed) for seed in args.seeds for name in LABELS]
    settings = {key: getattr(args, key) for key in ("train", "test", "epochs", "max_inputs", "lr")}
    command = "routed_lora/unlearning.py --data DATA --backbone PREPARED/minilm --runs RUNS"
    if not args.collect:
        run_cells(cells, args.runs, cell, args, command, settings)
    write_report(RESULT, cells, args.runs, LABELS, command, settings)


if __name__ == "__main__":
    main()
