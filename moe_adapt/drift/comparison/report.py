"""The report of a comparison: tables, ranks, curves with drift marks, expert load, in one HTML file."""

import math
import tempfile
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from moe_adapt.drift.comparison.summary import METRICS, Results, ranking, summarise, wins_and_losses
from moe_adapt.drift.plots import draw_curves, draw_expert_load
from moe_adapt.evaluation.html import image, page, table

__all__ = ["drift_report", "markdown_table", "missing_cells_note"]


def drift_report(title: str, results: Results, origin: dict[str, Any], planned: int) -> str:
    """Return the report.

    Args:
        title: Heading.
        results: Results of all cells.
        origin: Where the numbers come from: versions, machine, command.
        planned: Cells of the recipe.
    """
    done = sum(len(cells) for methods in results.values() for cells in methods.values())
    parts = [
        f"<p>{done} of {planned} runs. {escape(missing_cells_note(results))}</p>",
        *_tables(results),
        *_ranks(results),
        *_losses(results),
    ]
    with tempfile.TemporaryDirectory() as scratch:
        for stream, methods in results.items():
            parts += _pictures(stream, methods, Path(scratch))
    parts += ["<h2>Recovery after drifts</h2>", _recovery(results)]
    parts += ["<h2>Made with</h2>", table(["", ""], ((k, str(v)) for k, v in origin.items()))]
    return page(title, parts)


def missing_cells_note(results: Results) -> str:
    """Return which methods have fewer seeds than others, in words; empty if all have the same."""
    short = []
    for stream, methods in results.items():
        most = max(len(cells) for cells in methods.values())
        fewer = [f"{name} {len(cells)}" for name, cells in methods.items() if len(cells) < most]
        if fewer:
            short.append(f"{stream}: {', '.join(fewer)} of {most}")
    return f"Fewer seeds: {'; '.join(short)}." if short else ""


def _names(results: Results) -> list[str]:
    return list(dict.fromkeys(name for methods in results.values() for name in methods))


def _cell(value: tuple[float, float | None, int] | None) -> str:
    if value is None:
        return "-"
    mean, spread, _ = value
    return f"{mean:.2f}" if spread is None else f"{mean:.2f} ± {spread:.2f}"


def _tables(results: Results) -> list[str]:
    parts = []
    names = _names(results)
    for metric, (heading, _) in METRICS.items():
        found = summarise(results, metric)
        rows = [[stream, *(_cell(found[stream].get(name)) for name in names)] for stream in results]
        parts += [f"<h2>{escape(heading)}</h2>", table(["stream", *names], rows)]
    return parts


def markdown_table(results: Results, metric: str) -> list[str]:
    """Return the lines of a Markdown table of one metric; the best accuracy of a stream is bold."""
    names = _names(results)
    found = summarise(results, metric)
    lines = ["| stream | " + " | ".join(names) + " |", "|" + "---|" * (len(names) + 1)]
    for stream in results:
        best = max((value[0] for value in found[stream].values()), default=math.nan)
        cells = []
        for name in names:
            value = found[stream].get(name)
            bold = metric == "accuracy" and value is not None and value[0] == best
            cells.append(f"**{_cell(value)}**" if bold else _cell(value))
        lines.append(f"| {stream} | " + " | ".join(cells) + " |")
    return lines


def _ranks(results: Results) -> list[str]:
    found = ranking(results, _names(results))
    if found is None:
        return []
    text = (
        f"Average ranks over {found.streams} streams (on each over the seeds that all methods have); "
        f"Friedman's p = {found.p_value:.2g}, methods differ at 5 % if their ranks are more than "
        f"{found.critical_difference:.2f} apart (Nemenyi)."
    )
    return ["<h2>Ranks</h2>", f"<p>{text}</p>", table(["method", "average rank"], found.ranks.items())]


def _losses(results: Results) -> list[str]:
    parts = []
    for name in _names(results):
        if not name.startswith("driftmoe"):
            continue
        lost = wins_and_losses(results, name)
        rows = [
            [stream, ", ".join(f"{other} +{points:.2f}" for other, points in ahead.items())]
            for stream, ahead in lost.items()
        ]
        parts += [
            f"<h2>Who is ahead of {escape(name)}, points of accuracy</h2>",
            table(["stream", "ahead"], rows),
        ]
    return parts


def _pictures(stream: str, methods: Any, scratch: Path) -> list[str]:
    first = {name: min(cells, key=lambda cell: cell["seed"]) for name, cells in methods.items() if cells}
    if not first:
        return []
    one = next(iter(first.values()))
    path = scratch / "curves.png"
    draw_curves(
        {name: cell["curves"] for name, cell in first.items()}, path, stream, one["drifts"], one["bayes"]
    )
    parts = [f"<h2>{escape(stream)}</h2>", image(path, f"accuracy on {stream}")]
    for name, cell in first.items():
        if cell["expert_load"]["rows"]:
            path = scratch / "load.png"
            title = f"first choices of {name}, by expert"
            draw_expert_load(cell["expert_load"], path, title, cell["drifts"])
            parts.append(image(path, f"expert load of {name} on {stream}"))
    return parts


def _recovery(results: Results) -> str:
    rows: list[Sequence[Any]] = []
    for stream, methods in results.items():
        for name, cells in methods.items():
            found = [drift for cell in cells for drift in cell["recovery"]]
            back = [drift["rows"] for drift in found if drift["rows"] is not None]
            if found:
                mean = sum(back) / len(back) if back else None
                drop = sum(d["before"] - (d["before"] if d["lowest"] is None else d["lowest"]) for d in found)
                rows.append([stream, name, 100 * drop / len(found), mean, f"{len(back)} of {len(found)}"])
    heads = [
        "stream",
        "method",
        "largest drop, points",
        "rows until back within a point",
        "drifts recovered from",
    ]
    return table(heads, rows)
