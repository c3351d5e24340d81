"""Who is ahead on a stream: our method or the best of the others, and whether the rows tell them apart.

Differences and their 95 % intervals are those of `moe_adapt.drift.comparison.leads`; where an interval holds
0 the two are called level. Without an interval the means decide.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moe_adapt.drift.comparison.leads import accuracy_ends, lead
from moe_adapt.drift.comparison.summary import Results
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
        rivals = [name for name in methods if name not in own]
        best = lead(methods, own[0], rivals, _same_rows(next(iter(methods.values()))[0]))
        if best is not None:
            ends = None if math.isnan(best.low) else (best.low, best.high)
            found.append(Standing(stream, own[0], best.rival, *best.accuracy, ends))
    return found


def accuracy_interval(cells: Sequence[Mapping[str, Any]]) -> tuple[float, float] | None:
    """Return the ends of the 95 % interval of a method's accuracy on a stream, in %; None if unknown."""
    return accuracy_ends(cells, _same_rows(cells[0])) if cells else None


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
    text = f"Beside the best other method of each stream {found[0].ours} is {'; '.join(parts)}."
    if sides["level"] and any(one.ends for one in found):
        text += " Level: the 95 % interval of the difference holds 0."
    return f"{text} Numbers are points of accuracy."


def _on_one(one: Standing) -> str:
    word = "more" if one.lead >= 0 else "fewer"
    text = (
        f"In {one.own:.1f} % of the rows {one.ours} is right, {abs(one.lead):.1f} points {word} than "
        f"{one.rival}, the best of the others"
    )
    if one.ends is None:
        return f"{text}."
    ends = f"95 % interval of the difference {one.ends[0]:+.1f} to {one.ends[1]:+.1f}"
    return f"{text} ({ends}{', which holds 0: level' if one.side == 'level' else ''})."


def _listed(names: Iterable[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


def _same_rows(cell: Mapping[str, Any]) -> bool:
    stream = cell["settings"]["stream"]
    return "file" in stream or not any(stream["name"] in names for names in SUITES.values())
