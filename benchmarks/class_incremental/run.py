"""Run class-incremental streams with learners and orders; every cell is kept, so a stopped run goes on.

    python benchmarks/recipes/prepare.py --data $MOE_ADAPT_DATA --to PREPARED intents minilm
    python benchmarks/class_incremental/run.py --prepared PREPARED --streams intents_15 --methods ncm care
    python benchmarks/class_incremental/tables.py

Streams and methods are the YAML files beside this script. Learners over a frozen encoder learn from features
that are computed once (`encode.py`); times of a task are then without the encoder, whose time per sample is
reported beside them. Others run the encoder. A cell is a file below ``--runs``; ``--collect`` puts all of
them into ``benchmarks/results/class_incremental.json``, beside the rows that are there.
"""

import argparse
import json
import logging
import os
import statistics
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import yaml
from encode import encoded
from jsonargparse import ArgumentParser

from moe_adapt.errors import UserError
from moe_adapt.evaluation.accuracy_matrix import AccuracyMatrix
from moe_adapt.evaluation.continual import accuracy_seen, continual_metrics
from moe_adapt.learners import Care, Learner
from moe_adapt.learners.closed_form import ClosedForm
from moe_adapt.manifest import collect, git_commit
from moe_adapt.streams import TaskStream
from moe_adapt.training.stream import StreamRunner

HERE = Path(__file__).resolve().parent
RESULT = HERE.parent / "results" / "class_incremental.json"

COMMAND = "run.py --prepared PREPARED --streams ... --methods ... --orders ..."

#: Learners whose encoder stays as it is.
FROZEN = (
    "ncm",
    "slda",
    "slda_oas",
    "slda_layers",
    "ncm_layers",
    "ranpac_layers",
    "ridge",
    "ridge_grid",
    "ranpac",
    "ranpac_grid",
    "fecam",
    "fecam_shared",
    "joint",
    "compose_heads",
    "whitened_mean",
    "whitened_layers",
)
#: After how many tasks the learners that run the encoder are tested; the last task always counts.
EVERY = {
    "intents_15": 8,
    "intents_48": 24,
    "intents_144": 72,
    "tiny_imagenet_20": 5,
    "tiny_imagenet_100": 25,
    "tiny_imagenet_more_20": 10,
    "intents_more_48": 24,
    "omniglot_300": 100,
}


def build(stream: str, method: str, order: int, seed: int) -> tuple[TaskStream, Learner]:
    """Return stream and learner of a cell, from their YAML files."""
    parser = ArgumentParser()
    parser.add_argument("--learner", type=Learner)
    parser.add_argument("--stream", type=TaskStream)
    torch.manual_seed(seed)
    merged = merge(load(HERE / "streams" / f"{stream}.yaml"), load(HERE / "methods" / f"{method}.yaml"))
    merged["stream"]["init_args"]["order_seed"] = order
    backbone = {"init_args": {"backbone": merged.pop("backbone")}}
    merged["learner"] = merge(merged["learner"], backbone)
    built = parser.instantiate_classes(parser.parse_object(merged))
    expected = int(stream.rpartition("_")[2])
    if len(built.stream) != expected:
        raise UserError(
            f"{stream} should have {expected} tasks but has {len(built.stream)}: prepare all of the data "
            "(Tiny-ImageNet with --classes 200)."
        )
    return built.stream, built.learner


def load(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


def merge(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Return two nested mappings as one; the second wins."""
    result = dict(under)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merge(result[key], value) if both else value
    return result


def sizes(learner: Learner) -> dict[str, int]:
    """Return what a learner stores beside the pretrained encoder.

    Statistics are what only learning needs: sums of the closed-form heads and of routers, Gaussians of
    classes. The rest is what a forward needs.
    """
    state = learner.learner_state()
    if isinstance(learner, ClosedForm):
        statistics_bytes = learner.head.statistics_bytes()
        head = sum(tensor.numel() for tensor in tensors_of(learner.head.solution))
        extra = sum(t.numel() for name, t in state.items() if not name.startswith("head."))
        return {"extra_parameters": head + extra, "statistics_bytes": statistics_bytes}
    kept = {name: t for name, t in state.items() if name.startswith(("gaussians.", "router."))}
    return {
        "extra_parameters": sum(t.numel() for name, t in state.items() if name not in kept),
        "statistics_bytes": sum(t.numel() * t.element_size() for t in kept.values()),
    }


def tensors_of(solution: Any) -> list[torch.Tensor]:
    return [part for part in solution if isinstance(part, torch.Tensor)]


@torch.inference_mode()
def forwards_per_sample(learner: Learner, batch: dict[str, Any]) -> int:
    """Return how often a prediction runs the encoder, counted by a hook; 1 if the features were kept."""
    if "features" in batch:
        return 1
    calls: list[int] = []
    handle = learner.backbone.register_forward_hook(lambda *_: calls.append(1))
    learner.scores(batch)
    handle.remove()
    return len(calls)


@torch.inference_mode()
def recall(learner: Care, stream: TaskStream) -> list[dict[str, float]]:
    """Return per block how often a sample's task is among the chosen routers, and among the kept experts."""
    examples, tasks = stream.test_until(len(stream) - 1)
    of_sample = torch.from_numpy(tasks)
    counts = torch.zeros(len(learner.blocks), 2)
    for first in range(0, len(examples), 128):
        index = list(range(first, min(first + 128, len(examples))))
        items = examples.__getitems__(index)
        task = of_sample[index].unsqueeze(1)
        for block, decision in enumerate(learner.decisions(stream.collate(items))):
            counts[block, 0] += (decision.chosen == task).any(dim=1).sum()
            counts[block, 1] += (decision.gates.gather(1, task) > 0).sum()
    return [{"router": float(r), "expert": float(e)} for r, e in (counts / len(examples)).tolist()]


def run(stream_name: str, method: str, order: int, prepared: Path, runs: Path) -> dict[str, Any]:
    """Run one cell and return its row."""
    stream, learner = build(stream_name, method, order, seed=0)
    seconds_per_sample = None
    if method in FROZEN:
        seconds_per_sample = encoded(stream, learner.backbone, runs / "features")
    start = time.process_time()
    every = 1 if method in FROZEN else EVERY[stream_name]
    runner = StreamRunner(runs / stream_name / f"{method}-{order}", seed=0, eval_at=f"every={every}")
    result = runner.run(learner, stream, resume=(runner.folder / "last.ckpt").is_file())
    seen = accuracy_seen(result.matrix)
    steps = [task["seconds"] for task in result.tasks if task["learned"]]
    examples, _ = stream.test_until(0)
    batch = stream.collate(examples.__getitems__(list(range(min(8, len(examples))))))
    row = {
        "stream": stream_name,
        "method": method,
        "order": order,
        "tasks": len(stream),
        "classes": stream.num_seen[-1],
        "features_kept": method in FROZEN,
        "encoder_seconds_per_sample": seconds_per_sample,
        "metrics": continual_metrics(result.matrix),
        "curve": [[int(b), float(seen[b])] for b in result.matrix.measured()],
        "final_accuracy_within_task": continual_metrics(result.within)["final_accuracy"],
        "seconds_per_task": statistics.mean(s["learn"] + s["end"] for s in steps),
        "cpu_seconds": time.process_time() - start,
        "forwards_per_sample": forwards_per_sample(learner, batch),
        **sizes(learner),
    }
    if isinstance(learner, Care):
        row["recall"] = recall(learner, stream)
    if found := learner.report():
        row["report"] = found
    row["manifest"] = facts(COMMAND)
    (runner.folder / "last.ckpt").unlink(missing_ok=True)
    return row


def unfinished(runs: Path) -> list[dict[str, Any]]:
    """Return what is known of cells that were stopped: the curve as far as it goes."""
    found = []
    for path in sorted(runs.glob("*/*/result.json")):
        stream, (method, _, order) = path.parent.parent.name, path.parent.name.rpartition("-")
        if (runs / "cells" / f"{stream}.{method}.{order}.json").is_file():
            continue
        result = json.loads(path.read_text())
        seen = accuracy_seen(AccuracyMatrix(**result["accuracy_matrix"]))
        curve = [[step, float(value)] for step, value in enumerate(seen) if value == value]
        if curve:
            found.append({"stream": stream, "method": method, "order": int(order), "curve": curve})
    return found


def gather(runs: Path) -> None:
    """Put the cells into the result; rows of other cells that it has already stay, with their manifest."""
    known = json.loads(RESULT.read_text()) if RESULT.is_file() else {"manifest": {}, "rows": []}
    cells = [json.loads(path.read_text()) for path in sorted((runs / "cells").glob("*.json"))]
    found = {key_of(row): {"manifest": known["manifest"], **row} for row in known["rows"]}
    found |= {key_of(row): row for row in cells}
    rows = [found[key] for key in sorted(found)]
    manifest = collect() | {"command": "run.py --collect"}
    report = {"manifest": manifest, "rows": rows, "unfinished": unfinished(runs)}
    RESULT.write_text(json.dumps(report, indent=1) + "\n")


def facts(command: str) -> dict[str, Any]:
    """Return the manifest of a row; the commit is that of this script, since runs work in the data folder."""
    return collect() | {"command": command, "git_commit": git_commit(HERE)}


def key_of(row: dict[str, Any]) -> tuple[str, str, int]:
    return row["stream"], row["method"], row["order"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prepared", type=Path, help="the folder that prepare.py wrote")
    parser.add_argument("--streams", nargs="+", default=[], choices=list(EVERY), help="YAML names of streams")
    parser.add_argument("--methods", nargs="+", default=list(FROZEN), help="YAML names of methods")
    parser.add_argument("--orders", type=int, nargs="+", default=[1993], help="seeds of the class order")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/class_incremental"), help="folder of the cells"
    )
    parser.add_argument(
        "--collect", action="store_true", help="write the result from the cells that are there"
    )
    options = parser.parse_args()
    runs = options.runs.resolve()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    if options.streams:
        if options.prepared is None:
            parser.error("give the folder of prepared data")
        os.chdir(options.prepared)  # the YAML files name data and models relative to it
    for stream in options.streams:
        for order in options.orders:
            for method in options.methods:
                cell = runs / "cells" / f"{stream}.{method}.{order}.json"
                if cell.is_file():
                    continue
                row = run(stream, method, order, options.prepared, runs)
                cell.parent.mkdir(parents=True, exist_ok=True)
                part = cell.with_suffix(".part")
                part.write_text(json.dumps(row, indent=1) + "\n")
                part.rename(cell)
                print(
                    f"{stream} {method} {order}: A_B {row['metrics']['final_accuracy']:.4f}, "
                    f"{row['cpu_seconds']:.0f} CPU s",
                    flush=True,
                )
    if options.collect:
        gather(runs)


if __name__ == "__main__":
    main()
