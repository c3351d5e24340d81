"""Render the study's table: mean over seeds on dev rows, by which a default is chosen, and on test rows.

python benchmarks/defaults/tables.py
"""

import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from methods import METHODS
from sets import TEXT_SETS

RESULTS = Path(__file__).resolve().parents[1] / "results"
#: Sets in the order of the columns; the last is measured by perplexity, where lower is better.
SETS = (*TEXT_SETS, "tiny-imagenet", "shakespeare")


def spread(values: list[float], name: str) -> str:
    """Return mean and standard deviation, accuracies in percent."""
    factor = 1 if name == "shakespeare" else 100
    deviation = f" ± {factor * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{factor * statistics.mean(values):.1f}{deviation}"


def table(rows: list[dict[str, Any]], split: str, by: str) -> str:
    """Return one table.

    Args:
        rows: The cells.
        split: ``dev`` or ``test``.
        by: What a line is: ``start`` or ``method``.
    """
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in rows:
        found[row[by], row["set"]].append(row[split])
        for baseline in ("probe", "untrained"):
            key = f"{baseline}_{split}"
            if key in row and row["method"] == next(iter(METHODS)):
                name = "linear probe" if baseline == "probe" else "untrained"
                found[name, row["set"]].append(row[key])
    sets = [name for name in SETS if any(key[1] == name for key in found)]
    lines = [f"| {by} | " + " | ".join(sets) + " |", "|---" * (len(sets) + 1) + "|"]
    for label in dict.fromkeys(key[0] for key in found):
        cells = [spread(found[label, name], name) if (label, name) in found else "" for name in sets]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Write the page."""
    content = json.loads((RESULTS / "defaults.json").read_text(encoding="utf-8"))
    starts = [row for row in content["rows"] if row["method"] == "DynMoLE 6 x 4, ffn"]
    chosen = max({row["start"] for row in content["rows"]}, key=lambda s: _cells(content["rows"], s))
    methods = [row for row in content["rows"] if row["start"] == chosen]
    parts = ["# Defaults: starts of the head, methods, ranks, layers", ""]
    for title, rows, by in (("Starts of the head", starts, "start"), ("Methods", methods, "method")):
        for split in ("dev", "test"):
            parts += [f"## {title}, {split} rows", "", table(rows, split, by), ""]
    seeds = sorted({row["seed"] for row in content["rows"]})
    parts.append(f"{len(content['rows'])} cells, seeds {seeds}: accuracy in %, of shakespeare perplexity.")
    (RESULTS / "defaults.md").write_text("\n".join(parts) + "\n", encoding="utf-8")


def _cells(rows: list[dict[str, Any]], start: str) -> int:
    return len({(row["set"], row["method"]) for row in rows if row["start"] == start})


if __name__ == "__main__":
    main()
