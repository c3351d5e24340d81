"""Heads over the same kept features, with several draws of training rows: two kinds of error.

    python benchmarks/class_incremental/draws.py --prepared PREPARED --runs RUNS

A head in closed form does not depend on the order of its data, so it gets the rows of a draw in one update.
Draws are disjoint: 5 of the 20 texts per intent, 10 of the 50 images per class. All are judged on the same
test rows. The half interval over *rows* is of the mean paired difference per test row, averaged over draws;
that over *draws* is Student's t over the draws' differences. A stream with one draw has the first only.
A row (stream, samples per class, draw, method) that is in the result is not run again.
"""

import argparse
import json
import math
import os
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from encode import encoded
from run import HERE, build, facts

from moe_adapt.evaluation.equivalence import paired_difference
from moe_adapt.learners.closed_form import ClosedForm

RESULT = HERE.parent / "results" / "class_incremental_draws.json"
#: Stream, samples per class, draws.
SETTINGS = (
    ("intents_more_48", 5, 4),
    ("intents_more_48", 20, 1),
    ("tiny_imagenet_more_20", 10, 5),
    ("tiny_imagenet_more_20", 50, 1),
    ("omniglot_300", 5, 1),
)
#: Heads as published, the last one over the last six layers.
PUBLISHED = ("ncm", "slda", "ridge", "ranpac", "fecam", "fecam_shared", "layup")
OURS = ("slda_oas", "whitened_mean", "whitened_layers")
#: A covariance for each of 1,500 classes takes 1.8 GB.
LEFT_OUT = (("omniglot_300", "fecam"),)
MARGIN = 2.0


def drawn(labels: np.ndarray, per_class: int, draw: int) -> np.ndarray:
    """Return the row numbers of a draw: in every class the samples after those of the draws before."""
    rows = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    return np.sort(np.concatenate([of[draw * per_class : (draw + 1) * per_class] for of in rows]))


@torch.no_grad()
def run(name: str, per_class: int, draw: int, method: str, runs: Path) -> dict[str, Any]:
    """Return the row of a head that learned a draw."""
    _, learner = build(name, method, 1993, seed=0)
    stream, of_six = build(name, "layup", 1993, seed=0)
    assert isinstance(learner, ClosedForm)
    encoded(stream, of_six.backbone, runs / "features")
    width = learner.backbone.width  # the last layer of six is the encoder's own output
    train, test = (data.features[:, -width:] for data in (stream.train, stream.test))
    rows = torch.from_numpy(drawn(stream.train_labels, per_class, draw))
    labels = torch.from_numpy(stream.train_labels)[rows]
    start = time.process_time()
    features = learner.taken(train[rows])
    learner.head.update(features, labels)
    learner.head.end_task(features, labels)
    scores = learner.head(learner.taken(test))
    right = scores.argmax(dim=1).numpy() == stream.test_labels
    return {
        "stream": name,
        "per_class": per_class,
        "draw": draw,
        "method": method,
        "accuracy": float(right.mean()),
        "test_rows": len(right),
        "right": np.packbits(right).tobytes().hex(),
        "cpu_seconds": time.process_time() - start,
        "manifest": facts("draws.py --prepared PREPARED --runs RUNS"),
    }


def right_rows(row: dict[str, Any]) -> np.ndarray:
    """Return 100 for each test row that was answered right and 0 for the others, float64 [n]."""
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(row["right"]), dtype=np.uint8))
    return 100.0 * bits[: row["test_rows"]]


def difference(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return how far one head is from another on the same draws: points, two half intervals, verdict."""
    pairs = [right_rows(a) - right_rows(b) for a, b in zip(ours, theirs, strict=True)]
    by_row = np.mean(pairs, axis=0)
    found = paired_difference([float(pair.mean()) for pair in pairs], [0.0] * len(pairs), MARGIN)
    return {
        "points": float(by_row.mean()),
        "rows": 1.96 * float(by_row.std(ddof=1)) / math.sqrt(len(by_row)),
        "draws": found.half_width,
    }


def table(labels: dict[str, str]) -> list[str]:
    """Return the sections of the page: accuracies per setting, and who leads by how much.

    Args:
        labels: What each method is called.
    """
    if not RESULT.is_file():
        return []
    known: dict[tuple[str, int], dict[str, list[dict[str, Any]]]] = {}
    for row in sorted(json.loads(RESULT.read_text())["rows"], key=lambda row: row["draw"]):
        of = known.setdefault((row["stream"], row["per_class"]), {})
        of.setdefault(row["method"], []).append(row)
    settings = [(name, k) for name, k, _ in SETTINGS if (name, k) in known]
    titles = [f"{name.split('_more')[0].rsplit('_300')[0]}, {k} per class" for name, k in settings]
    lines = ["| head | " + " | ".join(titles) + " |", "|---" * (len(settings) + 1) + "|"]
    for method in (*PUBLISHED, *OURS):
        cells = [spread(known[setting].get(method, [])) for setting in settings]
        lines.append(f"| {labels[method]} | " + " | ".join(cells) + " |")
    leads = [
        f"* {title}: {leading(known[setting], labels)}"
        for title, setting in zip(titles, settings, strict=True)
    ]
    text = (
        "Heads that got every row at once, in per cent over all test rows; mean and standard deviation over "
        "disjoint draws of training rows, judged on the same test rows. The shrinkage and the number of "
        "layers of the whitened mean were chosen on held-out training rows."
    )
    return ["## Which head leads", text, "\n".join(lines), "\n".join(leads)]


def spread(rows: list[dict[str, Any]]) -> str:
    """Return mean ± standard deviation over draws, in per cent."""
    if not rows:
        return "-"
    values = [100 * row["accuracy"] for row in rows]
    mean = f"{np.mean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values, ddof=1):.1f}"


def leading(of: dict[str, list[dict[str, Any]]], labels: dict[str, str]) -> str:
    """Say which head is first and how far it is from the best of the heads as published."""

    def mean(method: str) -> float:
        return float(np.mean([row["accuracy"] for row in of[method]]))

    first = max(of, key=mean)
    if first in PUBLISHED:
        return f"first is {labels[first]}, as published."
    rival = max((method for method in PUBLISHED if method in of), key=mean)
    found = difference(of[first], of[rival])
    draws = "one draw" if found["draws"] is None else f"± {found['draws']:.1f} over draws"
    sure = found["points"] > max(found["rows"], found["draws"] or 0.0)
    verdict = "the winner" if sure else "no winner: the lead is within an interval"
    return (
        f"{labels[first]} is first, {found['points']:+.1f} points beside {labels[rival]} "
        f"(95 %: ± {found['rows']:.1f} over test rows, {draws}): {verdict}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prepared", type=Path, required=True, help="the folder that prepare.py wrote")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the kept features")
    parser.add_argument("--streams", nargs="+", default=sorted({name for name, *_ in SETTINGS}))
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    runs = options.runs.resolve()
    os.chdir(options.prepared)
    rows = json.loads(RESULT.read_text())["rows"] if RESULT.is_file() else []
    done = {(row["stream"], row["per_class"], row["draw"], row["method"]) for row in rows}
    for name, per_class, draws in SETTINGS:
        for draw in range(draws):
            for method in (*PUBLISHED, *OURS):
                skip = (name, method) in LEFT_OUT or name not in options.streams
                if skip or (name, per_class, draw, method) in done:
                    continue
                rows.append(run(name, per_class, draw, method, runs))
                part = RESULT.with_suffix(".part")
                part.write_text(json.dumps({"rows": rows}, indent=1) + "\n")
                part.rename(RESULT)
                row = rows[-1]
                shown = f"{name} {per_class} {draw} {method}: {row['accuracy']:.4f}"
                print(f"{shown}, {row['cpu_seconds']:.0f} CPU s", flush=True)


if __name__ == "__main__":
    main()
