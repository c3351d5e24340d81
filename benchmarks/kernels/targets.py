"""What we want of the Triton kernels on an H100, and how many cells of a measurement reach it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["TARGETS", "Target", "shown"]

Cell = dict[str, Any]


@dataclass(frozen=True)
class Target:
    """A target, reached if it holds in a share of the cells that it is about.

    Attributes:
        name: What it says.
        measured: Its quantity in a cell; None if the cell is not about it.
        holds: Whether that is good enough.
        share: Share of cells that have to reach it.
    """

    name: str
    measured: Callable[[Cell], float | None]
    holds: Callable[[float], bool]
    share: float = 1.0


def _to_floor(cell: Cell) -> float | None:
    if cell["pass"] != "forward" or cell["tokens"] < 2048 or "triton" not in cell["rows"]:
        return None
    return cell["rows"]["triton"]["to_floor"]


def _times_of(one: str, other: str, name: str) -> Callable[[Cell], float | None]:
    """Return the time of `one` in times of `other`, in cells of a pass that have both."""

    def ratio(cell: Cell) -> float | None:
        rows = cell["rows"]
        if cell["pass"] != name or one not in rows or other not in rows:
            return None
        return rows[one]["microseconds"] / rows[other]["microseconds"]

    return ratio


TARGETS = [
    Target("forward at most 1.3 times the floor from 2048 tokens on", _to_floor, lambda x: x <= 1.3),
    *(
        Target(
            f"forward and backward at least {factor} times as fast as {rival}",
            _times_of(rival, "triton", "both"),
            lambda x, factor=factor: x >= factor,  # type: ignore[misc]
            share=0.8,
        )
        for rival, factor in (("stacked", 1.3), ("grouped_mm", 2.0), ("expert_loop", 5.0))
    ),
    Target(
        "up to 64 tokens in a CUDA graph at most 1.5 times one LoRA of rank r",
        _times_of("triton", "single_lora", "decode"),
        lambda x: x <= 1.5,
    ),
]


def verdicts(results: list[Cell]) -> list[str]:
    """Return the table of targets as Markdown lines."""
    lines = ["| target | cells | reached | asked | verdict |", "|---|---|---|---|---|"]
    for target in TARGETS:
        values = [value for cell in results if (value := target.measured(cell)) is not None]
        hits = sum(map(target.holds, values))
        verdict = "not measured" if not values else "pass" if hits >= target.share * len(values) else "fail"
        lines.append(f"| {target.name} | {len(values)} | {hits} | {target.share:.0%} | {verdict} |")
    return lines


def shown(results: list[Cell]) -> str:
    """Return the results as Markdown: times in microseconds cell by cell, then the targets."""
    names = list(dict.fromkeys(name for cell in results for name in (*cell["rows"], *cell["absent"])))
    place = ("pass", "width", "tokens", "rank", "experts", "slots")
    head = ["pass", "d = o", "N", "r", "E", "K", "floor", *names, "triton / floor"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for cell in results:
        rows = cell["rows"]
        numbers = [cell["floor_microseconds"], *(rows.get(name, {}).get("microseconds") for name in names)]
        cells = [*(str(cell[name]) for name in place), *("" if n is None else f"{n:.1f}" for n in numbers)]
        to_floor = rows.get("triton", {}).get("to_floor")
        lines.append("| " + " | ".join([*cells, f"{to_floor:.2f}" if to_floor else ""]) + " |")
    return "\n".join([*lines, "", *verdicts(results)])
