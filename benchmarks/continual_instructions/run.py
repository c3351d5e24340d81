"""Compare SAME, DyMoE and their baselines on sequences of real text tasks.

    python benchmarks/continual_instructions/run.py SEQUENCE --data $MOE_ADAPT_DATA --model MODEL --work WORK
    python benchmarks/continual_instructions/run.py --render

Sequences are small, wide (its tasks with more rows), mechanisms (the parts of SAME and DyMoE one by one, over
small), long and language. MODEL
is a folder of all-MiniLM-L6-v2, an encoder that picks the choice nearest to the prompt (`ChoiceEncoder`);
adapters are on the feed-forward layers of its last three blocks. Every method trains rank 16 per layer and
task, with the same learning rate, epochs and batches; nothing was tuned per method. For language it is
SmolLM2-135M-Instruct with the same adapters in its last three blocks; it also writes its answers. A cell
(sequence, order, method) that is in WORK is not run again.
"""

import argparse
import json
import os
import resource
import sys
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from methods import MECHANISMS, METHODS
from sequences import SEQUENCES, build
from tables import RESULTS, render

from moe_adapt.backbones import CausalAnswerer, ChoiceEncoder
from moe_adapt.learners import LEARNERS, Learner
from moe_adapt.manifest import collect
from moe_adapt.streams import TaskStream
from moe_adapt.training.stream import StreamRunner
from moe_adapt.training.stream.evaluate import evaluate
from moe_adapt.tuner import RoutedLoraConfig

SMALL = {"train": 64, "test": 32, "epochs": 3, "max_length": 18}
#: Sizes of the sequences: samples per task, epochs, tokens.
SIZES = {
    "small": SMALL,
    "wide": {"train": 240, "test": 250, "epochs": 2, "max_length": 18},
    "mechanisms": SMALL,
    "long": {"train": 48, "test": 16, "epochs": 2, "max_length": 24},
    "language": {"train": 48, "test": 8, "epochs": 2, "max_length": 96},
}
LEARNING: dict[str, Any] = {"batch_size": 16, "lr": 6e-3, "schedule": "cosine", "warmup": 0.1}
#: What the language model has instead: its layers, smaller steps, fewer methods.
LANGUAGE_LEARNING = {**LEARNING, "batch_size": 8, "lr": 2e-3}
LANGUAGE_FFN = r".*layers\.(27|28|29)\.mlp\.(gate|up|down)_proj"
LANGUAGE_METHODS = ("seq_lora", "seq_moelora", "same_strict", "dymoe")
#: Bounds, plain fine-tuning, adapters apart, and pools that are kept steady, over enough rows to tell apart.
WIDE_METHODS = (
    "frozen",
    "joint",
    "seq_lora",
    "seq_moelora",
    "compose",
    "replay",
    "same",
    "same_strict",
    "dymoe",
    "dymoe_guarded",
    "olora",
    "prototype_lora",
)
#: What a sequence is run with if not all methods.
METHODS_OF: dict[str, Iterable[str]] = {
    "language": LANGUAGE_METHODS,
    "mechanisms": MECHANISMS,
    "wide": WIDE_METHODS,
}


def learning_of(sequence: str) -> dict[str, Any]:
    """Return the settings of training for a sequence."""
    return LANGUAGE_LEARNING if sequence == "language" else LEARNING


def run_cell(sequence: str, order: int, method: str, data: Path, model: str) -> dict[str, Any]:
    """Run one method over one sequence in one order; return a JSON-ready row."""
    _, name, adapter, options = (METHODS | MECHANISMS)[method]
    sizes = SIZES[sequence]
    stream = build(sequence, order, data, sizes["train"], sizes["test"])
    torch.manual_seed(order)
    writes = sequence == "language"
    if adapter is not None:
        targets = {"target_modules": LANGUAGE_FFN} if writes else {}
        options = {**options, "tuner": RoutedLoraConfig(method=adapter[0], **{**adapter[1], **targets})}
    backbone = (CausalAnswerer if writes else ChoiceEncoder)(model, max_length=sizes["max_length"])
    settings = {"epochs": sizes["epochs"], **learning_of(sequence), **options}
    learner = LEARNERS.get(name)(backbone=backbone, **settings)  # type: ignore[call-arg]
    start, cpu = time.perf_counter(), time.process_time()
    wide = sequence == "wide"
    runner = StreamRunner(seed=order, eval_batch_size=40, verdicts=writes, attribution=not wide)
    result = runner.run(learner, stream)
    row = {
        "sequence": sequence,
        "order": order,
        "method": method,
        "tasks": stream.task_names,
        **{key: result.matrix.to_dict()[key] for key in ("total", "correct")},
        "report": {k: v for k, v in learner.report().items() if not k.endswith("_by_site")},  # type: ignore[operator]
        "attribution": result.attribution or None,
        "right": packed(learner, stream) if wide else None,
        "verdicts": result.verdicts or None,
        "format_artefacts": result.format_artefacts() or None,
        "train_seconds": sum(task["seconds"]["steps"] for task in result.tasks if task["learned"]),
        "cpu_seconds": time.process_time() - cpu,
        "wall_seconds": time.perf_counter() - start,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    return row


def packed(learner: Learner, stream: TaskStream) -> list[str]:
    """Return per task which test samples are answered right at the end: bits, as hexadecimal digits."""
    last = len(stream) - 1
    right = evaluate(learner, stream, last, 40).right
    _, tasks = stream.test_until(last)
    return [np.packbits(right[tasks == task]).tobytes().hex() for task in range(last + 1)]


def run(options: argparse.Namespace) -> None:
    """Run the cells that are missing, then gather all of a sequence."""
    orders = SEQUENCES[options.sequence] if options.orders is None else options.orders
    options.work.mkdir(parents=True, exist_ok=True)
    for order in orders:
        for method in options.methods or METHODS_OF.get(options.sequence, METHODS):
            path = options.work / f"{options.sequence}-{order}-{method}.json"
            if path.is_file():
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                row = run_cell(options.sequence, order, method, options.data, options.model)
                row["manifest"] = _manifest(options.sequence)
            temporary = path.with_suffix(".tmp")
            temporary.write_text(json.dumps(row))
            temporary.replace(path)
            correct, total = row["correct"][-1], row["total"]
            mean = sum(c / t for c, t in zip(correct, total, strict=True)) / len(total)
            print(f"{path.stem}: {mean:.3f}, {row['cpu_seconds']:.0f} s CPU", flush=True)


def gather(sequence: str, work: Path) -> None:
    """Write the cells of a sequence beside the rows of its result file; a cell keeps its own manifest."""
    to = RESULTS / f"continual_instructions_{sequence}.json"
    settings = {**SIZES[sequence], **learning_of(sequence)}
    before = json.loads(to.read_text()) if to.is_file() else {"rows": [], "manifest": _manifest(sequence)}
    if before.get("settings", settings) != settings:
        raise SystemExit(f"{to.name} was made with {before['settings']}; rows would not compare.")
    rows = {(row["method"], row["order"]): row for row in before["rows"]}
    for path in sorted(work.glob(f"{sequence}-*.json")):
        row = json.loads(path.read_text())
        rows[row["method"], row["order"]] = row
    report = {"settings": settings, "rows": list(rows.values()), "manifest": before["manifest"]}
    to.write_text(json.dumps(report, indent=1) + "\n")


def _manifest(sequence: str) -> dict[str, Any]:
    model = "SMOLLM2" if sequence == "language" else "MINILM"
    return collect() | {"command": f"run.py {sequence} --data DATA --model {model} --work WORK"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sequence", nargs="?", choices=list(SEQUENCES))
    parser.add_argument("--data", type=Path, default=os.environ.get("MOE_ADAPT_DATA"), help="raw files")
    parser.add_argument("--model", help="folder of MiniLM, or of SmolLM2 for language")
    parser.add_argument("--work", type=Path, help="folder of finished cells")
    parser.add_argument("--methods", nargs="+", choices=[*METHODS, *MECHANISMS])
    parser.add_argument("--orders", nargs="+", type=int)
    parser.add_argument("--gather", action="store_true", help="only gather the cells in WORK")
    parser.add_argument("--render", action="store_true", help="only write the tables")
    options = parser.parse_args()
    if options.render:
        sys.exit(render())
    if options.sequence is None or options.work is None:
        parser.error("give a sequence and --work")
    if not options.gather:
        run(options)
    gather(options.sequence, options.work)


if __name__ == "__main__":
    main()
