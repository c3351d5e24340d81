"""Train what the comparison of composed adapters compares: an adapter per task, one for all, one in sequence.

    python benchmarks/compose/prepare.py --data $MOE_ADAPT_DATA --backbone prepared/minilm --runs runs/compose

Everything is kept in ``--runs`` and not computed again: rows with their middle states, adapters in PEFT's
format.
"""

import argparse
import json
import time
import warnings
from pathlib import Path
from typing import Any, get_args

import peft
import torch
from encoder import Cached, Halves, Settings, answers, lora_config, train
from tasks import READERS, Form, load

__all__ = ["SIZES", "adapter_folder", "cell_folder", "data_of"]

SIZES = {"train": 320, "validation": 40, "test": 100}
SINGLE = Settings(lr=2e-3, epochs=4, length=40)
#: Learning rates of the joint adapter; the best one on validation rows counts.
JOINT = (1e-3,)
JOINT_EPOCHS = 2


def cell_folder(runs: Path, form: str, seed: int) -> Path:
    """Return where a form and seed keep their files."""
    return runs / f"{form}-{seed}"


def adapter_folder(runs: Path, form: str, seed: int, name: str) -> Path:
    """Return the folder of an adapter: a task's, ``joint``, ``sequential``."""
    return cell_folder(runs, form, seed) / "adapters" / name


def data_of(halves: Halves, data: Path, runs: Path, form: Form, seed: int) -> dict[str, dict[str, Cached]]:
    """Return the rows of every task by split, with their middle states."""
    path = cell_folder(runs, form, seed) / "rows.pt"
    if path.is_file():
        return torch.load(path, weights_only=False)
    found = {}
    for task in READERS:
        splits = load(data, task, form, **SIZES, seed=seed)
        found[task] = {name: halves.cache(rows) for name, rows in splits.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(found, path)
    return found


def all_of(rows: dict[str, dict[str, Cached]], split: str) -> Cached:
    """Return the rows of all tasks in one."""
    whole = None
    for parts in rows.values():
        whole = parts[split] if whole is None else whole + parts[split]
    assert whole is not None
    return whole


def fit(halves: Halves, rank: int, rows: list[Cached], settings: Settings, seed: int, folder: Path) -> Any:
    """Train one adapter on one set of rows after the other, and save it."""
    torch.manual_seed(seed)
    model = peft.get_peft_model(halves.fresh(), lora_config(rank))
    start = time.process_time()
    with torch.autocast("cpu", torch.bfloat16):
        for part in rows:
            train(model, part, settings, seed)
    model.save_pretrained(str(folder.with_suffix(".part")))
    folder.with_suffix(".part").rename(folder)
    (folder / "training.json").write_text(
        json.dumps({"cpu_seconds": time.process_time() - start, **vars(settings)})
    )
    return model


def prepare_cell(halves: Halves, args: argparse.Namespace, form: Form, seed: int) -> None:
    """Train all adapters of a form and seed that are not there."""
    rows = data_of(halves, args.data, args.runs, form, seed)
    for task, parts in rows.items():
        folder = adapter_folder(args.runs, form, seed, task)
        folder.parent.mkdir(parents=True, exist_ok=True)
        if not folder.is_dir():
            fit(halves, 8, [parts["train"]], SINGLE, seed, folder)
            print(form, seed, task, flush=True)
    rank = 8 * len(rows)
    sequential = adapter_folder(args.runs, form, seed, "sequential")
    if args.baselines and not sequential.is_dir():
        settings = Settings(lr=1e-3, epochs=JOINT_EPOCHS)
        fit(halves, rank, [parts["train"] for parts in rows.values()], settings, seed, sequential)
        print(form, seed, "sequential", flush=True)
    joint = adapter_folder(args.runs, form, seed, "joint")
    if args.baselines and not joint.is_dir():
        tried = {}
        for lr in JOINT:
            folder = joint.with_name(f"joint-{lr}")
            if not folder.is_dir():
                fit(halves, rank, [all_of(rows, "train")], Settings(lr=lr, epochs=JOINT_EPOCHS), seed, folder)
            model = peft.PeftModel.from_pretrained(halves.fresh(), str(folder))
            with torch.autocast("cpu", torch.bfloat16):
                tried[lr] = answers(model, all_of(rows, "validation")).float().mean().item()
            print(form, seed, folder.name, tried[lr], flush=True)
        best = max(tried, key=lambda lr: tried[lr])
        joint.with_name(f"joint-{best}").rename(joint)
        (joint / "validation.json").write_text(json.dumps(tried))


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--backbone", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--forms", nargs="+", choices=get_args(Form), default=["codes", "names"])
    parser.add_argument("--baselines", action="store_true", help="train the joint and sequential ones too")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    halves = Halves(args.backbone, SINGLE.length)
    for form in args.forms:
        for seed in args.seeds:
            prepare_cell(halves, args, form, seed)


if __name__ == "__main__":
    main()
