"""Who is first on a stream, and by how much: one method against the best of the others, with an interval.

Where both methods keep right answers per 100 rows, the interval is that of a paired block bootstrap
(`moe_adapt.drift.intervals`). Where one has accuracies only and both have two seeds or more with rows of
their own, it is Student's, over the paired seeds. Else there is none.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from moe_adapt.drift.comparison.cells import UNIT
from moe_adapt.drift.comparison.summary import Results
from moe_adapt.drift.intervals import paired_block_interval

__all__ = ["Lead", "accuracy_ends", "lead", "lead_table"]

Cells = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Lead:
    """A method beside its best rival on a stream, in points of accuracy.

    Attributes:
        rival: The best of the others.
        seeds: How many seeds of the method and of the rival were compared.
        accuracy: Their mean accuracies over these.
        low: Lower end of the 95 % interval of the difference; nan if there is none.
        high: Upper end.
    """

    rival: str
    seeds: tuple[int, int]
    accuracy: tuple[float, float]
    low: float
    high: float

    @property
    def points(self) -> float:
        """The method's accuracy minus the rival's."""
        return self.accuracy[0] - self.accuracy[1]

    @property
    def place(self) -> str:
        """Say in words who is first."""
        if self.low > 0:
            return "first"
        if self.high < 0:
            return f"behind by {-self.points:.2f}"
        if self.low <= 0 <= self.high:
            return "within the interval of the first"
        return "no interval"


def lead(methods: Mapping[str, Cells], method: str, rivals: Sequence[str], same_rows: bool) -> Lead | None:
    """Compare a method with the best of the others on a stream; None if the stream lacks one of them.

    Args:
        methods: Method -> results by seed.
        method: The method in question.
        rivals: The others.
        same_rows: Whether all seeds see the same rows; else only shared seeds count.
    """
    pairs = []
    for name in rivals:
        own, other = methods.get(method, ()), methods.get(name, ())
        if not same_rows:
            shared = {cell["seed"] for cell in own} & {cell["seed"] for cell in other}
            own, other = _chosen(own, shared), _chosen(other, shared)
        if own and other:
            pairs.append((name, own, other))
    if not pairs:
        return None
    name, own, other = min(pairs, key=lambda pair: _mean(pair[1]) - _mean(pair[2]))
    low, high = _interval(own, other, same_rows)
    return Lead(name, (len(own), len(other)), (100 * _mean(own), 100 * _mean(other)), 100 * low, 100 * high)


def lead_table(results: Results, method: str, same_rows: Mapping[str, bool], own: Sequence[str]) -> list[str]:
    """Return the lines of a Markdown table: the method beside its best rival on every stream.

    Args:
        results: Results of all cells.
        method: The method in question.
        same_rows: Whether all seeds see the same rows, by stream.
        own: Variants of the method, which are no rivals.
    """
    heads = ["stream", method, "best of the others", "its accuracy", "difference [95 %]", "place"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for stream, methods in results.items():
        rivals = [name for name in methods if name != method and name not in own]
        found = lead(methods, method, rivals, same_rows[stream])
        if found is None:
            continue
        ours, theirs = found.accuracy
        ends = "" if math.isnan(found.low) else f" [{found.low:+.2f}, {found.high:+.2f}]"
        lines.append(
            f"| {stream} | {ours:.2f} ({found.seeds[0]}) | {found.rival} | {theirs:.2f} ({found.seeds[1]}) "
            f"| {found.points:+.2f}{ends} | {found.place} |"
        )
    return lines


def _chosen(cells: Cells, seeds: set[int]) -> Cells:
    return sorted((cell for cell in cells if cell["seed"] in seeds), key=lambda cell: cell["seed"])


def _mean(cells: Cells) -> float:
    return statistics.fmean(cell["accuracy"] for cell in cells)


def accuracy_ends(cells: Cells, same_rows: bool) -> tuple[float, float] | None:
    """Return the ends of the 95 % interval of a method's accuracy, in %; None where rows were not counted.

    Args:
        cells: Its results by seed.
        same_rows: Whether all seeds see the same rows.
    """
    right = _right(cells)
    if right is None:
        return None
    _, low, high = paired_block_interval(right, np.zeros_like(right), _sizes(cells), same_rows)
    return 100 * low, 100 * high


def _interval(own: Cells, other: Cells, same_rows: bool) -> tuple[float, float]:
    first, second = _right(own), _right(other)
    if first is not None and second is not None:
        return paired_block_interval(first, second, _sizes(own), same_rows)[1:]
    if same_rows or len(own) < 2:
        return math.nan, math.nan
    from scipy.stats import t

    ahead = [a["accuracy"] - b["accuracy"] for a, b in zip(own, other, strict=True)]
    reach = float(t.ppf(0.975, len(ahead) - 1)) * statistics.stdev(ahead) / math.sqrt(len(ahead))
    return statistics.fmean(ahead) - reach, statistics.fmean(ahead) + reach


def _right(cells: Cells) -> np.ndarray | None:
    """Return right answers [seeds, units]; None if a result has none."""
    if not cells or any(cell.get("right") is None for cell in cells):
        return None
    return np.array([cell["right"].split() for cell in cells], dtype=np.int64)


def _sizes(cells: Cells) -> np.ndarray:
    """Return the rows of the units, of which the last may be short."""
    return np.diff([*range(0, cells[0]["rows"], UNIT), cells[0]["rows"]])
