"""Gather the cells of `compare.py` into one report, and render its tables.

    python benchmarks/compose/tables.py --runs runs/compose

writes ``benchmarks/results/compose.json``; ``--render`` writes the tables of that file to
``benchmarks/results/compose.md``. Differences are paired over the seeds, with 95 % intervals (Student's t).
"""

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any

RESULT = Path(__file__).resolve().parents[1] / "results" / "compose.json"

#: 97.5 % quantiles of Student's t by degrees of freedom.
_T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571}


def paired(one: list[float], other: list[float]) -> str:
    """Return the mean of paired differences with the half of its 95 % interval.

    >>> paired([0.5, 0.6, 0.7], [0.4, 0.5, 0.6])
    '+10.0 ± 0.0'
    """
    differences = [100 * (a - b) for a, b in zip(one, other, strict=True)]
    text = f"{statistics.mean(differences):+.1f}"
    if len(differences) < 2:
        return text
    half = _T[len(differences) - 1] * statistics.stdev(differences) / math.sqrt(len(differences))
    return f"{text} ± {half:.1f}"


def spread(values: list[float]) -> str:
    """Return mean and standard deviation in percent."""
    deviation = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{deviation}"


def table(cells: list[dict[str, Any]]) -> str:
    """Return the accuracies of one form as a Markdown table."""
    means = {name: [cell["accuracy"][name]["mean"] for cell in cells] for name in cells[0]["accuracy"]}
    oracle = means["oracle"]
    reference = means["LDA, 320 texts"]
    best_merge = max(
        (name for name in means if name.startswith("merge")), key=lambda name: statistics.mean(means[name])
    )
    lines = [
        "| | accuracy, % | of the right adapter | LDA (320 texts) minus this, points | right adapter found |",
        "|---|---|---|---|---|",
    ]
    for name, values in means.items():
        share = 100 * statistics.mean(v / o for v, o in zip(values, oracle, strict=True))
        hits = [cell["found"].get(name) for cell in cells]
        hit = f"{100 * statistics.mean(hits):.1f} %" if None not in hits else ""
        label = f"**{name}**" if name in ("LDA, 320 texts", best_merge) else name
        lines.append(f"| {label} | {spread(values)} | {share:.0f} % | {paired(reference, values)} | {hit} |")
    return "\n".join(lines)


def removals(cells: list[dict[str, Any]]) -> str:
    """Return what removing each adapter did, averaged over adapters."""
    lines = ["| | % |", "|---|---|"]

    def mean(key: str) -> list[float]:
        return [statistics.mean(task[key] for task in cell["removal"].values()) for cell in cells]

    for label, key in (
        ("accuracy on its own rows before", "before"),
        ("accuracy on its own rows afterwards", "own rows"),
        ("the base on these rows", "base"),
        ("rows of other tasks that go elsewhere", "others moved"),
    ):
        lines.append(f"| {label} | {spread(mean(key))} |")
    return "\n".join(lines)


def render(report: dict[str, Any]) -> str:
    """Return all tables."""
    parts = ["# Adapters that were trained apart\n"]
    for form in dict.fromkeys(cell["form"] for cell in report["cells"]):
        cells = [cell for cell in report["cells"] if cell["form"] == form]
        parts.append(
            f"## {form}, {len(cells)} seeds\n\n{table(cells)}\n\nRemoving one adapter:\n\n{removals(cells)}\n"
        )
    return "\n".join(parts)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--runs", type=Path)
    parser.add_argument("--render", action="store_true")
    args = parser.parse_args()
    if args.runs:
        cells = [json.loads(path.read_text()) for path in sorted(args.runs.glob("*/cell.json"))]
        RESULT.write_text(json.dumps({"cells": cells}, indent=1) + "\n")
    if args.render:
        RESULT.with_suffix(".md").write_text(render(json.loads(RESULT.read_text())))


if __name__ == "__main__":
    main()
