"""What the stream runner itself costs over 300 tasks, and its evaluation against Avalanche's.

Times do not depend on what the samples say, so they are random: token ids for MiniLM with one LoRA, and 384
features for a ridge regression (every task is tested on everything seen, with checkpoints on disk). The
share of time outside optimiser steps, the learner's own work (statistics, solving) and test forwards is the
runner's own: trainers, loaders, seeds, counting, files.

Evaluation: the same linear learner, the same 10,000 test vectors in 301 experiences, our pass and Avalanche's
``strategy.eval`` (accuracy per experience, no loggers) in turns, in seconds of processor time.

    python benchmarks/stream_speed.py --out benchmarks/results/stream_speed.json
"""

import argparse
import contextlib
import io
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from moe_adapt.backbones import Encoder
from moe_adapt.demo.stream import MiniLm
from moe_adapt.learners import FineTuning, Learner, Ridge
from moe_adapt.manifest import collect
from moe_adapt.streams import ArrayStream, Labelled, TaskStream, incremental_stream
from moe_adapt.streams.avalanche import to_avalanche
from moe_adapt.training.stream import StreamResult, StreamRunner
from moe_adapt.training.stream.evaluate import evaluate
from moe_adapt.tuner import RoutedLoraConfig

#: What time is measured by.
CLOCKS: dict[str, Callable[[], float]] = {"processor": time.process_time, "wall": time.perf_counter}


class NoEncoder(Encoder):
    """Stands for the encoder of a stream of features."""

    def __init__(self, width: int) -> None:
        super().__init__(nn.Identity(), "features", width)

    def forward(self, batch: dict[str, Any]) -> torch.Tensor:
        """Return the features [B, d]."""
        return batch["features"]


def token_stream(tasks: int, per_class: int, length: int) -> TaskStream:
    """Return texts of random tokens, five classes per task, two test samples per class."""
    classes = 5 * tasks
    generator = torch.Generator().manual_seed(0)

    def split(size: int) -> Labelled:
        ids = torch.randint(1000, 20000, (classes * size, length), generator=generator)
        rows = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in ids]
        return Labelled(rows, np.repeat(np.arange(classes), size))

    names = [str(label) for label in range(classes)]
    return incremental_stream(split(per_class), split(2), names, increment=5, order_seed=None)


def vector_stream(classes: int, first: int, increment: int, train: int, test: int, width: int) -> ArrayStream:
    """Return random vectors around class centres."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((classes, width))
    arrays = {}
    for split, size in (("train", train), ("test", test)):
        labels = np.repeat(np.arange(classes), size)
        arrays[f"x_{split}"] = centres[labels] + rng.standard_normal((len(labels), width))
        arrays[f"y_{split}"] = labels
    return ArrayStream(arrays, increment=increment, first=first)


def shares(
    learner: Learner, stream: TaskStream, clock: Callable[[], float], **options: Any
) -> dict[str, Any]:
    """Run a learner over a stream, with a folder on disk, and return where the time of `clock` went.

    The runner reads `time.perf_counter`, which is replaced; so processor time leaves out what other programs
    took, and also the waiting for the disk.
    """
    with tempfile.TemporaryDirectory() as folder, mock.patch("time.perf_counter", clock):
        start = clock()
        result: StreamResult = StreamRunner(Path(folder), **options).run(learner, stream)
        total = clock() - start
    seconds = [task["seconds"] for task in result.tasks]
    parts = {name: sum(each[name] for each in seconds) for name in ("steps", "own", "evaluate_model")}
    return {
        "tasks": len(stream),
        "steps": sum(task["steps"] for task in result.tasks),
        "seconds": total,
        **{f"{name}_seconds": value for name, value in parts.items()},
        "overhead_share": 1 - sum(parts.values()) / total,
        "overhead_seconds_per_task": (total - sum(parts.values())) / len(stream),
    }


def evaluation(rounds: int) -> dict[str, Any]:
    """Return processor seconds of one evaluation over 301 experiences, ours and Avalanche's."""
    stream = vector_stream(1000, 100, 3, train=2, test=10, width=64)
    torch.manual_seed(0)
    learner = FineTuning(NoEncoder(64))
    learner.begin_task(stream.merged())
    means = torch.stack([stream.train.features[stream.train_labels == c].mean(dim=0) for c in range(1000)])
    learner.head.weight.data = means
    learner.head.bias.data = -0.5 * means.square().sum(dim=1)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        from avalanche.evaluation.metrics import accuracy_metrics
        from avalanche.training import Naive
        from avalanche.training.plugins import EvaluationPlugin

        benchmark = to_avalanche(stream, inputs="features")
        model = nn.Linear(64, 1000)
        model.load_state_dict(learner.head.state_dict())
        plugin = EvaluationPlugin(accuracy_metrics(experience=True, stream=True), loggers=[])
        naive = Naive(
            model=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            eval_mb_size=256,
            evaluator=plugin,
        )
        times: dict[str, list[float]] = {"moe_adapt": [], "avalanche": []}
        for _ in range(rounds + 1):
            start = time.process_time()
            found = evaluate(learner, stream, len(stream) - 1, 256)
            middle = time.process_time()
            theirs = naive.eval(benchmark.test_stream)
            times["moe_adapt"].append(middle - start)
            times["avalanche"].append(time.process_time() - middle)
    ours = found.correct.sum() / len(found.right)
    (other,) = (value for name, value in theirs.items() if name.startswith("Top1_Acc_Stream"))
    assert abs(ours - other) < 1e-6, f"accuracies differ: {ours} and {other}"
    counted = {name: values[1:] for name, values in times.items()}
    ratios = [a / b for a, b in zip(counted["avalanche"], counted["moe_adapt"], strict=True)]
    return {
        "experiences": len(stream),
        "test_samples": len(found.right),
        "cpu_seconds_moe_adapt": statistics.median(counted["moe_adapt"]),
        "cpu_seconds_avalanche": statistics.median(counted["avalanche"]),
        "ratio_median": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
    }


def _write(args: argparse.Namespace, result: dict[str, Any]) -> None:
    if args.out:
        settings = {key: value for key, value in vars(args).items() if key != "out"}
        manifest = collect() | {"command": "stream_speed.py --out FILE"}
        report = {"manifest": manifest, "settings": settings, "results": result}
        args.out.write_text(json.dumps(report, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=300, help="tasks of the ridge regression")
    parser.add_argument("--lora_tasks", type=int, default=300, help="tasks of LoRA")
    parser.add_argument("--per_class", type=int, default=20, help="training texts of each class")
    parser.add_argument("--length", type=int, default=16, help="tokens per text")
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds of evaluation")
    parser.add_argument("--parts", nargs="+", default=["evaluation", "ridge", "lora"], help="what to measure")
    parser.add_argument("--out", type=Path, help="where to write the result as JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {}
    if "evaluation" in args.parts:
        result["evaluation"] = evaluation(args.rounds)
        _write(args, result)
    if "ridge" in args.parts:
        features = vector_stream(5 * args.tasks, 0, 5, train=13, test=3, width=384)
        for name, clock in CLOCKS.items():
            ridge = Ridge(NoEncoder(384), lam=1.0)
            result[f"ridge on features, {name} time"] = shares(ridge, features, clock, eval_batch_size=1024)
        _write(args, result)
    if "lora" in args.parts:
        torch.manual_seed(0)
        lora = FineTuning(MiniLm(), tuner=RoutedLoraConfig(method="lora"), batch_size=16)
        texts = token_stream(args.lora_tasks, args.per_class, args.length)
        result["LoRA on MiniLM, processor time"] = shares(
            lora, texts, CLOCKS["processor"], eval_at="every=50"
        )
        _write(args, result)
    table = Table("measured", "value")
    for name, rows in result.items():
        for key, value in rows.items():
            table.add_row(f"{name}: {key}", f"{value:.4g}" if isinstance(value, float) else str(value))
    Console().print(table)


if __name__ == "__main__":
    main()
