"""Means, spreads and paired intervals of the composition benchmark.

A row of a table compares a method with a reference by paired differences: a pair is a seed and a task in A, a
seed and a customer in B and C. Tasks of one seed share its rows, codes and start, and customers of one seed
its utterances, so pairs of one seed are not independent. Two 95 % intervals are given for that reason:

* resampled: seeds are drawn with replacement, then tasks or customers within each drawn seed. With three
  seeds it is too narrow, because three seeds show too little of how seeds differ;
* over seeds: Student's t over the mean difference of each seed, with seeds minus one degrees of freedom.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import t as student

__all__ = [
    "REFERENCE",
    "Row",
    "best_merge",
    "by_setting",
    "having",
    "means_of",
    "of_tenants",
    "over_rows",
    "seeds_note",
    "spread",
    "task_row",
    "tenant_row",
    "writing_row",
]

#: The method that all others are compared with in A.
REFERENCE = "LDA, 320 texts"
#: The one in B and C.
PLAIN = "plain LoRA"
DRAWS = 10_000


@dataclass(frozen=True)
class Row:
    """A method beside a reference.

    Attributes:
        accuracy: Mean and standard deviation over seeds, in percent; says so if seeds are missing. Empty if
            the method was not measured.
        resampled: Mean paired difference in points, with the interval of `nested`; empty for the reference.
        over_seeds: The same difference, with the interval of `paired`.
    """

    accuracy: str = ""
    resampled: str = ""
    over_seeds: str = ""


def paired(differences: Sequence[float]) -> str:
    """Return the mean of differences in points, with the half of its 95 % interval by Student's t.

    >>> paired([0.1, 0.1, 0.1])
    '+10.0 ± 0.0'
    """
    points = [100 * difference for difference in differences]
    text = f"{statistics.mean(points):+.1f}"
    if len(points) < 2:
        return text
    factor = float(student.ppf(0.975, len(points) - 1))
    return f"{text} ± {factor * statistics.stdev(points) / math.sqrt(len(points)):.1f}"


def nested(differences: Sequence[Sequence[float]]) -> str:
    """Return the mean of differences in points, with a 95 % interval that resamples seeds, then within them.

    Args:
        differences: Paired differences by seed.

    >>> nested([[0.1, 0.1], [0.3, 0.3]])
    '+20.0 [+10.0, +30.0]'
    """
    points = 100 * np.array(differences)
    text = f"{points.mean():+.1f}"
    seeds, within = points.shape
    if seeds < 2:
        return text
    rng = np.random.default_rng(0)
    drawn = rng.integers(seeds, size=(DRAWS, seeds, 1))
    means = points[drawn, rng.integers(within, size=(DRAWS, seeds, within))].mean(axis=(1, 2))
    low, high = np.quantile(means, (0.025, 0.975))
    return f"{text} [{low:+.1f}, {high:+.1f}]"


def over_rows(differences: Sequence[Sequence[float]]) -> str:
    """Return the mean of differences in points, with a 95 % interval that resamples the rows of every task.

    It tells what other rows of the same tasks could have shown, and nothing of other seeds.

    Args:
        differences: Paired differences of rows by task.

    >>> over_rows([[1.0, 1.0], [0.0, 0.0]])
    '+50.0 [+50.0, +50.0]'
    """
    rng = np.random.default_rng(0)
    means = [rng.choice(100 * np.array(own), size=(DRAWS, len(own))).mean(axis=1) for own in differences]
    low, high = np.quantile(np.mean(means, axis=0), (0.025, 0.975))
    mean = 100 * statistics.mean(statistics.mean(own) for own in differences)
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"


def spread(values: Sequence[float]) -> str:
    """Return mean and standard deviation in percent."""
    deviation = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{deviation}"


def seeds_note(some: int, seeds: int) -> str:
    """Return a note if something was not measured for all seeds."""
    return "" if some == seeds else f" ({some} of {seeds} seeds)"


def _row(own: list[list[float]], one: list[list[float]], other: list[list[float]], seeds: int) -> Row:
    """Return the row of a method from values by seed: its own, and those whose difference is told."""
    accuracy = f"{spread([statistics.mean(part) for part in own])}{seeds_note(len(own), seeds)}"
    if one == other:
        return Row(accuracy)
    differences = [[a - b for a, b in zip(*pair, strict=True)] for pair in zip(one, other, strict=True)]
    return Row(accuracy, nested(differences), paired([statistics.mean(part) for part in differences]))


# A: tasks.


def means_of(cells: list[dict[str, Any]], method: str) -> list[float]:
    """Return a method's mean accuracy over the tasks for every seed."""
    return [cell["accuracy"][method]["mean"] for cell in cells]


def having(cells: list[dict[str, Any]], method: str) -> list[dict[str, Any]]:
    """Return the cells in which a method was measured."""
    return [cell for cell in cells if method in cell["accuracy"]]


def best_merge(cells: list[dict[str, Any]]) -> str:
    """Return the merge with the best mean on test rows, in favour of merging."""
    merges = [name for name in cells[0]["accuracy"] if name.startswith("merge")]
    return max(merges, key=lambda name: statistics.mean(means_of(cells, name)))


def task_row(cells: list[dict[str, Any]], method: str) -> Row:
    """Return a method of A; the difference is what the reference is ahead of it by."""
    here = having(cells, method)
    if not here:
        return Row()
    own, reference = (
        [[v for task, v in cell["accuracy"][name].items() if task != "mean"] for cell in here]
        for name in (method, REFERENCE)
    )
    return _row(own, reference, own, len(cells))


def writing_row(cells: list[dict[str, Any]], method: str) -> Row:
    """Return a method's answers that were written exactly; the difference is resampled over rows."""
    here = [cell["written"] for cell in cells if method in cell.get("written", {})]
    if not here:
        return Row()
    shares = [statistics.mean(statistics.mean(own) for own in found[method].values()) for found in here]
    accuracy = f"{spread(shares)}{seeds_note(len(here), len(cells))}"
    if method == REFERENCE:
        return Row(accuracy)
    pairs = [
        zip(found[REFERENCE][task], own, strict=True) for found in here for task, own in found[method].items()
    ]
    return Row(accuracy, over_rows([[float(a) - float(b) for a, b in pair] for pair in pairs]))


# B and C: customers.


def by_setting(cells: list[dict[str, Any]]) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Return settings with their cells, by number of customers and by how often they agree."""
    settings = {tuple(sorted(cell["setting"].items())): cell["setting"] for cell in cells}
    order = sorted(settings.values(), key=lambda setting: (setting["tenants"], setting["agreement"]))
    return [(setting, [cell for cell in cells if cell["setting"] == setting]) for setting in order]


def of_tenants(cells: list[dict[str, Any]]) -> dict[str, dict[int, dict[str, Any]]]:
    """Return the cells of a setting by method and seed."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for cell in cells:
        found.setdefault(cell["method"], {})[cell["seed"]] = cell
    return found


def tenant_row(by_method: dict[str, dict[int, dict[str, Any]]], method: str) -> Row:
    """Return a method of B or C; the difference is what it is ahead of one LoRA by."""
    plain = by_method[PLAIN]
    seeds = sorted(set(by_method.get(method, {})) & set(plain))
    if not seeds:
        return Row()
    own, base = ([found[seed]["test"] for seed in seeds] for found in (by_method[method], plain))
    return _row(own, own, base, len(plain))
