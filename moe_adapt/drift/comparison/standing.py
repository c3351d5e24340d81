"""Who is ahead on a stream: our method or the best of the others, and whether the rows tell them apart.

The difference is that of the accuracies on the seeds that both methods have. Its 95 % interval comes from
blocks of rows (`moe_adapt.drift.intervals`); where it holds 0 the two are called level. Results without
counts of right answers give no interval, and the means decide.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from moe_adapt.drift.comparison.cells import UNIT
from moe_adapt.drift.comparison.summary import Results, paired_means
from moe_adapt.drift.intervals import paired_block_interval
from moe_adapt.drift.streams.suites import SUITES

__all__ = ["Standing", "accuracy_interval", "our_methods", "standings", "verdict_sentence"]

#: Kind of the learners that are ours, and the name of the one that reports are about.
OURS = "driftmoe"


@dataclass(frozen=True)
class Standing:
    """How our method stands on a stream, in points of accuracy.

    Attributes:
        stream: The stream.
        ours: Our method.
        rival: The best of the others.
        own: Accuracy of ours.
        other: Accuracy of the rival.
        ends: Of the 95 % interval of ``own - other``; None if rows were not counted.
    """

    stream: str
    ours: str
    rival: str
    own: float
    other: float
    ends: tuple[float, float] | None

    @property
    def lead(self) -> float:
        """Accuracy of ours minus that of the rival."""
        return self.own - self.other

    @property
    def side(self) -> str:
        """``ahead``, ``level`` or ``behind``."""
        low, high = self.ends or (self.lead, self.lead)
        return "ahead" if low > 0 else "behind" if high < 0 else "level"


def our_methods(results: Results) -> list[str]:
    """Return the methods that are ours; the first is the one that reports are about."""
    names = list(
        dict.fromkeys(
            name
            for methods in results.values()
            for name, cells in methods.items()
            if cells and cells[0]["settings"]["method"]["kind"] == OURS
        )
    )
    return sorted(names, key=lambda name: name != OURS)


def standings(results: Results) -> list[Standing]:
    """Return how our first method stands on every stream that it and another method were run on."""
    own = our_methods(results)
    found = []
    for stream, methods in results.items() if own else ():
        pairs = {
            name: pair
            for name in methods
            if name not in own and (pair := paired_means(results, stream, [own[0], name])) is not None
        }
        if pairs:
            rival = max(pairs, key=lambda name: pairs[name][name])
            means = pairs[rival]
            ends = _difference(methods[own[0]], methods[rival])
            found.append(Standing(stream, own[0], rival, 100 * means[own[0]], 100 * means[rival], ends))
    return found


def accuracy_interval(cells: Sequence[Mapping[str, Any]]) -> tuple[float, float] | None:
    """Return the ends of the 95 % interval of a method's accuracy on a stream, in %; None if unknown."""
    counted = [_counts(cell) for cell in cells]
    if not counted or any(one is None for one in counted):
        return None
    right = np.stack(counted)  # type: ignore[arg-type]
    _, low, high = paired_block_interval(right, np.zeros_like(right), _sizes(cells[0]), _same_rows(cells[0]))
    return 100 * low, 100 * high


def verdict_sentence(found: Sequence[Standing]) -> str:
    """Return who wins where, in words; empty without standings."""
    if len(found) == 1:
        return _on_one(found[0])
    if not found:
        return ""
    sides = {
        side: [f"{one.stream} ({one.lead:+.1f})" for one in found if one.side == side]
        for side in ("ahead", "level", "behind")
    }
    parts = [f"{side} on {_listed(names)}" for side, names in sides.items() if names]
    text = f"{found[0].ours} and the best other method of each stream: {'; '.join(parts)}."
    if sides["level"] and any(one.ends for one in found):
        text += " Level: the 95 % interval of the difference holds 0."
    return f"{text} Numbers are points of accuracy."


def _on_one(one: Standing) -> str:
    word = "more" if one.lead >= 0 else "fewer"
    text = (
        f"{one.ours} is right in {one.own:.1f} % of the rows, {abs(one.lead):.1f} points {word} than "
        f"{one.rival}, the best of the others"
    )
    if one.ends is None:
        return f"{text}."
    ends = f"95 % interval of the difference {one.ends[0]:+.1f} to {one.ends[1]:+.1f}"
    return f"{text} ({ends}{', which holds 0: level' if one.side == 'level' else ''})."


def _listed(names: Iterable[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


def _difference(
    own: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]
) -> tuple[float, float] | None:
    seeds = {cell["seed"] for cell in own} & {cell["seed"] for cell in other}
    pairs = [[_counts(cell) for cell in cells if cell["seed"] in seeds] for cells in (own, other)]
    if any(one is None for counts in pairs for one in counts):
        return None
    first, second = (np.stack(counts) for counts in pairs)  # type: ignore[arg-type]
    _, low, high = paired_block_interval(first, second, _sizes(own[0]), _same_rows(own[0]))
    return 100 * low, 100 * high


def _counts(cell: Mapping[str, Any]) -> np.ndarray | None:
    right = cell.get("right")
    return None if right is None else np.array(right.split(), dtype=np.int64)


def _sizes(cell: Mapping[str, Any]) -> np.ndarray:
    """Return the rows of the units that right answers are counted in, of which the last may be short."""
    return np.diff([*range(0, cell["rows"], UNIT), cell["rows"]])


def _same_rows(cell: Mapping[str, Any]) -> bool:
    stream = cell["settings"]["stream"]
    return "file" in stream or not any(stream["name"] in names for names in SUITES.values())
