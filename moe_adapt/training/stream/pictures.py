"""The pictures of a stream report, as SVG: accuracy over time, by task, what was forgotten, experts' load."""

from collections.abc import Mapping, Sequence

import numpy as np

from moe_adapt.evaluation.accuracy_matrix import AccuracyMatrix
from moe_adapt.evaluation.continual import accuracy_seen, forgetting_by_task
from moe_adapt.evaluation.html import table
from moe_adapt.evaluation.svg import heat_map, line_chart

__all__ = ["stream_pictures"]


def stream_pictures(
    matrix: AccuracyMatrix,
    names: Sequence[str],
    curves: Mapping[str, AccuracyMatrix],
    routing: Mapping[str, Sequence[float]],
) -> list[str]:
    """Return headings and pictures.

    Args:
        matrix: Accuracies of the run.
        names: Names of its tasks.
        curves: Accuracies by run, this one first.
        routing: Share of picks of each expert by site; empty without routers.
    """
    parts = ["<h2>Accuracy over all classes seen</h2>", _curve(curves)]
    parts += ["<h2>Accuracy by task, in %</h2>", _by_task(matrix, names)]
    if len(matrix) > 1 and len(matrix.measured()) > 1:
        parts += ["<h2>Forgetting</h2>", _forgetting(matrix, names)]
    if routing:
        experts = max(map(len, routing.values()))
        shares = [[*own, *[0.0] * (experts - len(own))] for own in routing.values()]
        parts += [
            "<h2>Load of the experts</h2>",
            heat_map(shares, list(routing), [str(number) for number in range(experts)]),
            '<p class="note">Share of picks of each expert (column) in each layer (row), over samples of all '
            "tasks after the last one.</p>",
        ]
    return parts


def _curve(curves: Mapping[str, AccuracyMatrix]) -> str:
    points: dict[str, list[tuple[float, float]]] = {}
    for name, matrix in curves.items():
        seen, steps = accuracy_seen(matrix), matrix.measured()
        if len(steps) == 1 and len(matrix) > 1:  # a bound that was tested once is a level
            level = float(seen[steps[0]])
            points[f"{name} (tested once)"] = [(1.0, level), (float(len(matrix)), level)]
        else:
            points[name] = [(float(step + 1), float(seen[step])) for step in steps]
    return line_chart(points, "tasks learned", "accuracy over all classes seen")


def _by_task(matrix: AccuracyMatrix, names: Sequence[str]) -> str:
    rates = matrix.rates()
    shown = [step for step in range(len(matrix)) if step in set(matrix.measured().tolist())]
    values = np.nan_to_num(rates[shown]).tolist()
    written = [[f"{100 * v:.0f}" if v == v else "" for v in rates[step]] for step in shown]
    rows = [f"after {names[step]}" for step in shown]
    numbers = written if len(names) <= 30 else None
    return heat_map(values, rows, list(names), numbers) + (
        '<p class="note">Each task (column) after learning each task (row).</p>'
    )


def _forgetting(matrix: AccuracyMatrix, names: Sequence[str]) -> str:
    rates = matrix.rates()
    last = len(matrix) - 1
    since, best = forgetting_by_task(matrix, "initial"), forgetting_by_task(matrix, "max")
    rows = [
        (names[task], *(float(x) for x in (rates[task, task], rates[last, task], since[task], best[task])))
        for task in range(last)
    ]
    heads = ["task", "right after learning", "at the end", "lost since then", "lost since its best"]
    return table(heads, rows, {3: "min", 4: "min"})
