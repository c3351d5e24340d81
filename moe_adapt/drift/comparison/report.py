"""The report of a comparison, one HTML file: who wins where, tables, accuracy over time, voices, recovery."""

import math
from collections.abc import Sequence
from html import escape
from typing import Any

from moe_adapt.drift.committee.voices import voice_names
from moe_adapt.drift.comparison.standing import (
    Standing,
    accuracy_interval,
    our_methods,
    standings,
    verdict_sentence,
)
from moe_adapt.drift.comparison.summary import METRICS, Results, ranking, summarise, wins_and_losses
from moe_adapt.evaluation.html import facts, page, table, verdict
from moe_adapt.evaluation.svg import COLOURS, heat_map, line_chart

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
    found = standings(results)
    parts = [verdict(verdict_sentence(found))] if found else []
    parts += [
        f'<p class="note">{done} of {planned} runs. Every row is predicted before its label is shown. '
        f"{escape(missing_cells_note(results))}</p>",
        *_first(results, found),
        *(_methods(results) if len(results) == 1 else _streams(results)),
        *_curves(results, found),
        *_voices(results),
        *_recovery(results),
        *_ranks(results),
        *_losses(results),
        _folded("Made with", facts({key: value for key, value in origin.items() if value is not None})),
    ]
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
    """Return the methods: ours first, then the others by their mean accuracy."""
    own, found = our_methods(results), summarise(results, "accuracy")
    names = list(dict.fromkeys(name for methods in results.values() for name in methods))

    def mean(name: str) -> float:
        known = [found[stream][name][0] for stream in results if name in found[stream]]
        return sum(known) / len(known) if known else 0.0

    return sorted(names, key=lambda name: (name != (own or [""])[0], -mean(name)))


def _cell(value: tuple[float, float | None, int] | None) -> str:
    if value is None:
        return "-"
    mean, spread, _ = value
    return f"{mean:.2f}" if spread is None else f"{mean:.2f} ± {spread:.2f}"


def _unbroken(value: tuple[float, float | None, int] | None) -> str:
    return _cell(value).replace(" ", "\u00a0")


def _with_ends(value: float, ends: tuple[float, float] | None, form: str = ".1f") -> str:
    return f"{value:{form}}" + ("" if ends is None else f" [{ends[0]:{form}},\u00a0{ends[1]:{form}}]")


def _folded(name: str, content: str) -> str:
    return f"<details><summary>{escape(name)}</summary>{content}</details>"


def _first(results: Results, found: list[Standing]) -> list[str]:
    """Return our method beside the best other one, stream by stream; the better is bold."""
    if not found:
        return []
    rows, bold = [], set()
    for number, one in enumerate(found):
        methods = results[one.stream]
        own = _with_ends(one.own, accuracy_interval(methods[one.ours]))
        other = _with_ends(one.other, accuracy_interval(methods[one.rival]))
        rows.append([one.stream, own, f"{one.rival} {other}", _with_ends(one.lead, one.ends, "+.1f")])
        bold.add((number, 1 if one.lead > 0 else 2))
    heads = ["stream", found[0].ours, "best other", "lead"]
    note = "Accuracy in % and points, with 95 % intervals over blocks of rows and over seeds."
    return [
        f"<h2>{escape(found[0].ours)} and the best of the others</h2>",
        table(heads, rows, bold=bold),
        f'<p class="note">{note}</p>',
    ]


def _methods(results: Results) -> list[str]:
    """Return all methods on the only stream."""
    (stream,) = results
    found = {metric: summarise(results, metric)[stream] for metric in METRICS}
    metrics = [metric for metric in METRICS if found[metric]]
    names = _names(results)
    rows = [[name, *(_unbroken(found[metric].get(name)) for metric in metrics)] for name in names]
    bold = {
        (names.index(name), column)
        for column, metric in enumerate(metrics, start=1)
        for name in _best(found[metric], metric)
    }
    heads = ["method", *(METRICS[metric][0] for metric in metrics)]
    return ["<h2>All methods</h2>", table(heads, rows, bold=bold)]


def _streams(results: Results) -> list[str]:
    """Return a table per metric of all methods on all streams, ours first; accuracy open, others folded."""
    names, parts = _names(results), []
    for metric, (heading, _) in METRICS.items():
        found = summarise(results, metric)
        if not any(found.values()):
            continue
        rows = [[stream, *(_unbroken(found[stream].get(name)) for name in names)] for stream in results]
        bold = {
            (number, 1 + names.index(name))
            for number, stream in enumerate(results)
            for name in _best(found[stream], metric)
        }
        content = table(["stream", *names], rows, bold=bold)
        if metric == "accuracy":
            parts += [f"<h2>All methods, {escape(heading)}</h2>", content]
        else:
            parts.append(_folded(heading, content))
    return parts


def _best(values: dict[str, tuple[float, float | None, int]], metric: str) -> list[str]:
    """Return the methods with the best mean: the highest share, the least time and memory."""
    if len(values) < 2:
        return []
    pick = max if METRICS[metric][1] == 100.0 else min
    top = pick(value[0] for value in values.values())
    return [name for name, value in values.items() if value[0] == top]


def markdown_table(results: Results, metric: str) -> list[str]:
    """Return the lines of a Markdown table of one metric; the best accuracy of a stream is bold."""
    names = list(dict.fromkeys(name for methods in results.values() for name in methods))
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


def _curves(results: Results, found: list[Standing]) -> list[str]:
    """Return accuracy over the window, a picture per stream: ours, the best other one, the next best."""
    parts = ["<h2>Accuracy over time</h2>"]
    rivals = {one.stream: [one.ours, one.rival] for one in found}
    everyone = list(dict.fromkeys(name for methods in results.values() for name in methods))
    for stream, methods in results.items():
        first = {name: min(cells, key=lambda cell: cell["seed"]) for name, cells in methods.items() if cells}
        by_accuracy = sorted(first, key=lambda name: -first[name]["accuracy"])
        names = list(dict.fromkeys([*rivals.get(stream, []), *by_accuracy]))[: len(COLOURS)]
        if len(everyone) <= len(COLOURS):
            names.sort(key=everyone.index)  # a method has one colour in all pictures
        one = first[names[0]]
        curves = {
            name: [
                (row, 100 * value)
                for row, value in zip(
                    first[name]["curves"]["rows"], first[name]["curves"]["accuracy"], strict=True
                )
                if value is not None
            ]
            for name in names
        }
        level = None if one["bayes"] is None else 100 * one["bayes"]
        words = f"accuracy in % over {one['window']:,} rows"
        note = [f"seed {one['seed']}"]
        if len(first) > len(names):
            note.append(f"the best {len(names)} of {len(first)} methods")
        if one["drifts"]:
            note.append("dashed upright lines are drifts")
        if level is not None:
            note.append("the flat line is the best that is possible in the mean")
        parts += [
            f"<h3>{escape(stream)}</h3>",
            line_chart(curves, "rows", words, one["drifts"], level),
            f'<p class="note">{escape("; ".join(note)).capitalize()}.</p>',
        ]
    return parts


def _voices(results: Results) -> list[str]:
    """Return which voice or expert had most weight, over time, for each of our methods."""
    parts = []
    for stream, methods in results.items():
        for name in our_methods(results):
            cell = min(methods.get(name, ()), key=lambda cell: cell["seed"], default=None)
            if cell is None or not cell["expert_load"]["rows"]:
                continue
            load = cell["expert_load"]
            rows = _voice_names(cell["settings"]["method"], max(map(len, load["share"])))
            values = [
                [share[place] if place < len(share) else 0.0 for share in load["share"]]
                for place in range(len(rows))
            ]
            columns = [f"{row:,}" for row in load["rows"]]
            parts += [f"<h3>{escape(name)} on {escape(stream)}</h3>", heat_map(values, rows, columns)]
    if not parts:
        return []
    note = "Share of the rows up to each number in which a voice or expert had most weight, as colour."
    return [_folded("Which voice counted when", f'<p class="note">{note}</p>{"".join(parts)}')]


def _voice_names(method: dict[str, Any], count: int) -> list[str]:
    committee = method.get("mode", "committee") == "committee" and method.get("preset") != "paper"
    names = voice_names(method.get("experts")) if committee else []
    return names if len(names) == count else [f"expert {place}" for place in range(count)]


def _recovery(results: Results) -> list[str]:
    rows: list[Sequence[Any]] = []
    for stream, methods in results.items():
        for name, cells in methods.items():
            found = [drift for cell in cells for drift in cell["recovery"]]
            back = [drift["rows"] for drift in found if drift["rows"] is not None]
            if found:
                mean = f"{sum(back) / len(back):,.0f}" if back else None
                drop = sum(d["before"] - (d["before"] if d["lowest"] is None else d["lowest"]) for d in found)
                share = f"{100 * drop / len(found):.1f}"
                rows.append([f"{stream}, {name}", share, mean, f"{len(back)} of {len(found)}"])
    heads = ["", "largest drop, points", "rows until back within a point", "drifts recovered from"]
    return ["<h2>Recovery after drifts</h2>", table(heads, rows)] if rows else []


def _ranks(results: Results) -> list[str]:
    found = ranking(results, _names(results))
    if found is None or found.streams < 2:
        return []
    text = (
        f"Over {found.streams} streams, on each over the seeds that all methods have; "
        f"Friedman's p = {found.p_value:.2g}, methods differ at 5 % if their ranks are more than "
        f"{found.critical_difference:.2f} apart (Nemenyi)."
    )
    ranks = [[name, f"{rank:.2f}"] for name, rank in found.ranks.items()]
    return ["<h2>Average ranks</h2>", table(["method", "rank"], ranks), f'<p class="note">{text}</p>']


def _losses(results: Results) -> list[str]:
    parts = []
    for name in our_methods(results):
        rows = [
            [stream, ", ".join(f"{other} +{points:.2f}" for other, points in ahead.items())]
            for stream, ahead in wins_and_losses(results, name).items()
        ]
        if rows:
            content = table(["stream", "ahead, points of accuracy"], rows, texts=True)
            parts.append(_folded(f"Who is ahead of {name}", content))
    return parts
