"""Means, spreads and paired intervals of the composition benchmark.

Intervals are 95 % ones of Student's t over paired differences: a pair is a seed and a task in A, a seed and
a tenant in B and C. The column over seeds has the means over tasks as pairs: three, hence wide intervals.
"""

import math
import statistics
from collections.abc import Sequence
from typing import Any

from scipy.stats import t as student

__all__ = [
    "REFERENCE",
    "against_plain",
    "best_merge",
    "having",
    "means_of",
    "of_tasks",
    "of_tenants",
    "paired",
    "seeds_of",
    "spread",
]

#: The method that all others are compared with.
REFERENCE = "LDA, 320 texts"


def paired(one: Sequence[float], other: Sequence[float]) -> str:
    """Return the mean of paired differences in points, with the half of its 95 % interval.

    >>> paired([0.5, 0.6, 0.7], [0.4, 0.5, 0.6])
    '+10.0 ± 0.0'
    """
    differences = [100 * (a - b) for a, b in zip(one, other, strict=True)]
    text = f"{statistics.mean(differences):+.1f}"
    if len(differences) < 2:
        return text
    factor = float(student.ppf(0.975, len(differences) - 1))
    return f"{text} ± {factor * statistics.stdev(differences) / math.sqrt(len(differences)):.1f}"


def spread(values: Sequence[float]) -> str:
    """Return mean and standard deviation in percent."""
    deviation = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{deviation}"


def of_tasks(cells: list[dict[str, Any]], method: str) -> list[float]:
    """Return a method's accuracy for every seed and task."""
    return [value for cell in cells for task, value in cell["accuracy"][method].items() if task != "mean"]


def means_of(cells: list[dict[str, Any]], method: str) -> list[float]:
    """Return a method's mean accuracy over the tasks for every seed."""
    return [cell["accuracy"][method]["mean"] for cell in cells]


def having(cells: list[dict[str, Any]], method: str) -> list[dict[str, Any]]:
    """Return the cells in which a method was measured."""
    return [cell for cell in cells if method in cell["accuracy"]]


def seeds_of(some: list[dict[str, Any]], cells: list[dict[str, Any]]) -> str:
    """Return a note if a method was not measured in all cells."""
    return "" if len(some) == len(cells) else f" ({len(some)} of {len(cells)} seeds)"


def best_merge(cells: list[dict[str, Any]]) -> str:
    """Return the merge with the best mean on test rows, in favour of merging."""
    merges = [name for name in cells[0]["accuracy"] if name.startswith("merge")]
    return max(merges, key=lambda name: statistics.mean(of_tasks(cells, name)))


def of_tenants(cells: list[dict[str, Any]]) -> dict[str, dict[int, dict[str, Any]]]:
    """Return the cells of a setting by method and seed."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for cell in cells:
        found.setdefault(cell["method"], {})[cell["seed"]] = cell
    return found


def against_plain(by_method: dict[str, dict[int, dict[str, Any]]], method: str) -> tuple[str, str, str]:
    """Return a method's accuracy, and its difference from one LoRA over seeds and tenants, and over seeds."""
    plain = by_method["plain LoRA"]
    seeds = sorted(set(by_method.get(method, {})) & set(plain))
    if not seeds:
        return "", "", ""
    own, base = ([found[seed]["test"] for seed in seeds] for found in (by_method[method], plain))
    note = "" if len(seeds) == len(plain) else f" ({len(seeds)} of {len(plain)} seeds)"
    means = [statistics.mean(part) for part in own]
    accuracy = f"{spread(means)}{note}"
    if method == "plain LoRA":
        return accuracy, "", ""
    over_tenants = paired([v for part in own for v in part], [v for part in base for v in part])
    return accuracy, over_tenants, paired(means, [statistics.mean(part) for part in base])
