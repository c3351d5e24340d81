"""Which head leads over several draws of training rows, with two kinds of error; from `draws.py`'s rows.

The half interval over *rows* is of the mean paired difference per test row, averaged over draws; that over
*draws* is Student's t over the draws' differences. A setting with one draw has the first only.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from moe_adapt.evaluation.equivalence import paired_difference

__all__ = ["OURS", "PUBLISHED", "RESULT", "SETTINGS", "table"]

RESULT = Path(__file__).resolve().parent.parent / "results" / "class_incremental_draws.json"
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
MARGIN = 2.0


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
