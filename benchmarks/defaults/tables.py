"""Render the study's table: mean over seeds on dev rows, by which a default is chosen, and on test rows.

python benchmarks/defaults/tables.py
"""

import json
import math
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from methods import IMAGE_METHODS, METHODS
from scipy.stats import t
from sets import TEXT_SETS

RESULTS = Path(__file__).resolve().parents[1] / "results"
#: The method of the packaged recipes, which the others are compared with.
DEFAULT = "DynMoLE 6 x 24, ffn"
#: Kinds of sets that may get defaults of their own.
KINDS = {"texts": tuple(TEXT_SETS), "images": ("tiny-imagenet",), "language": ("shakespeare",)}
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
    found: dict[tuple[str, str], dict[int, float]] = defaultdict(dict)
    for row in rows:
        found[row[by], row["set"]][row["seed"]] = row[split]
    for baseline, name in (("probe", "linear probe"), ("untrained", "untrained")):
        for row in rows:
            if f"{baseline}_{split}" in row:
                found[name, row["set"]][row["seed"]] = row[f"{baseline}_{split}"]
    sets = [name for name in SETS if any(key[1] == name for key in found)]
    lines = [f"| {by} | " + " | ".join(sets) + " |", "|---" * (len(sets) + 1) + "|"]
    for label in dict.fromkeys(key[0] for key in found):
        cells = [list(found[label, name].values()) if (label, name) in found else [] for name in sets]
        shown = (spread(values, name) if values else "" for values, name in zip(cells, sets, strict=True))
        lines.append(f"| {label} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def lead(rows: list[dict[str, Any]]) -> list[str]:
    """Return how far each start is from the first of them, dev and test, over the cells that all have."""
    cells: dict[str, dict[tuple[str, int], dict[str, Any]]] = defaultdict(dict)
    for row in rows:
        cells[row["start"]][row["set"], row["seed"]] = row
    shared = set.intersection(*(set(own) for own in cells.values()))
    mean = {
        split: {start: statistics.mean(own[key][split] for key in shared) for start, own in cells.items()}
        for split in ("dev", "test")
    }
    first = max(mean["dev"], key=lambda start: mean["dev"][start])
    lines = [f"| {first} minus | dev, points | test, points |", "|---|---|---|"]
    for start in (name for name in cells if name != first):
        said = [paired([cells[first][k][s] - cells[start][k][s] for k in shared]) for s in ("dev", "test")]
        lines.append(f"| {start} | " + " | ".join(said) + " |")
    probe = paired([cells[first][key]["dev"] - cells[first][key]["probe_dev"] for key in shared])
    return [
        *lines,
        f"| linear probe | {probe} | |",
        "",
        f"Over {len(shared)} pairs of set and seed; ± is one standard error.",
    ]


def gains(rows: list[dict[str, Any]]) -> list[str]:
    """Return how far each method is ahead of the default, in points; of perplexity in percent."""
    cells: dict[str, dict[tuple[str, int], dict[str, Any]]] = defaultdict(dict)
    for row in rows:
        cells[row["method"]][row["set"], row["seed"]] = row
    lines = ["| method minus the default | kind | pairs | dev | test |", "|---|---|---|---|---|"]
    for method in (name for name in METHODS if name != DEFAULT):
        for kind, sets in KINDS.items():
            shared = [k for k in sorted(cells[method].keys() & cells[DEFAULT].keys()) if k[0] in sets]
            if len(shared) > 1:
                pairs = [(cells[method][key], cells[DEFAULT][key]) for key in shared]
                said = [interval([difference(*pair, split) for pair in pairs]) for split in ("dev", "test")]
                lines.append(f"| {method} | {kind} | {len(shared)} | {' | '.join(said)} |")
    return lines


def difference(one: dict[str, Any], other: dict[str, Any], split: str) -> float:
    """Return by how many points (of perplexity: percent) one cell is better than another."""
    if one["set"] == "shakespeare":
        return 100 * math.log(other[split] / one[split])
    return 100 * (one[split] - other[split])


def interval(differences: list[float]) -> str:
    """Return a mean and half of its 95 % interval (Student's t)."""
    error = statistics.stdev(differences) / len(differences) ** 0.5
    return f"{statistics.mean(differences):+.1f} ± {t.ppf(0.975, len(differences) - 1) * error:.1f}"


def complete(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the cells of sets and seeds for which every planned method is there."""
    found: dict[tuple[str, int], set[str]] = defaultdict(set)
    for row in rows:
        found[row["set"], row["seed"]].add(row["method"])
    planned = {"tiny-imagenet": set(IMAGE_METHODS)}
    return [r for r in rows if found[r["set"], r["seed"]] >= planned.get(r["set"], set(METHODS))]


def paired(differences: list[float]) -> str:
    """Return mean and standard error in points."""
    error = statistics.stdev(differences) / len(differences) ** 0.5
    return f"{100 * statistics.mean(differences):+.1f} ± {100 * error:.1f}"


def main() -> None:
    """Write the page."""
    content = json.loads((RESULTS / "defaults.json").read_text(encoding="utf-8"))
    small = [row for row in content["rows"] if row["method"] == "DynMoLE 6 x 4, ffn"]
    starts = [row for row in small if row["set"] in TEXT_SETS]
    chosen = max(sorted({row["start"] for row in content["rows"]}), key=lambda s: _cells(content["rows"], s))
    methods = complete([row for row in content["rows"] if row["start"] == chosen])
    parts = ["# Defaults: starts of the head, methods, ranks, layers", ""]
    parts += ["## Starts of the head, paired", "", *lead(starts), ""]
    parts += ["## Methods, paired with the packaged one", "", *gains(methods), ""]
    parts += [
        "± is half of a 95 % interval over pairs of set and seed; language in percent of perplexity.",
        "",
    ]
    for title, rows, by in (("Starts of the head", starts, "start"), ("Methods", methods, "method")):
        for split in ("dev", "test") if len({row[by] for row in rows}) > 1 else ():
            parts += [f"## {title}, {split} rows", "", table(rows, split, by), ""]
    seeds = sorted({row["seed"] for row in content["rows"]})
    parts.append(f"{len(content['rows'])} cells, seeds {seeds}: accuracy in %, of shakespeare perplexity.")
    (RESULTS / "defaults.md").write_text("\n".join(parts) + "\n", encoding="utf-8")


def _cells(rows: list[dict[str, Any]], start: str) -> int:
    return len({(row["set"], row["method"]) for row in rows if row["start"] == start})


if __name__ == "__main__":
    main()
