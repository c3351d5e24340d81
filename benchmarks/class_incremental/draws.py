"""Heads over the same kept features, with several draws of training rows: two kinds of error.

    python benchmarks/class_incremental/draws.py --prepared PREPARED --runs RUNS

A head in closed form does not depend on the order of its data, so it gets the rows of a draw in one update.
Draws are disjoint: 5 of the 20 texts per intent, 10 of the 50 images per class. All are judged on the same
test rows; `leads.py` says who leads by how much. A row (stream, samples per class, draw, method)
that is in the result is not run again.
"""

import argparse
import json
import os
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from encode import encoded
from leads import OURS, PUBLISHED, RESULT, SETTINGS
from run import build, facts

from moe_adapt.learners.closed_form import ClosedForm

#: A covariance for each of 1,500 classes takes 1.8 GB.
LEFT_OUT = (("omniglot_300", "fecam"),)


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
