"""The report of ``moe-adapt compare``: runs in a table, their metric as a picture, pairs in words."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from moe_adapt.errors import UserError
from moe_adapt.evaluation.html import page, table, verdict
from moe_adapt.evaluation.svg import strip_chart
from moe_adapt.evaluation.words import better, metric_words
from moe_adapt.files import write_file
from moe_adapt.runs.comparison import Run

__all__ = ["write_comparison"]


def write_comparison(
    to: Path, runs: Sequence[Run], shared: Sequence[str], metric: str, pairs: Sequence[str], overwrite: bool
) -> Path:
    """Write the report.

    Args:
        to: The file.
        runs: The runs.
        shared: Metrics that all of them have.
        metric: The one that pairs are compared by.
        pairs: What was found about pairs, a sentence each.
        overwrite: Whether a file that is there may be replaced.

    Raises:
        UserError: If there is one.
    """
    if to.exists() and not overwrite:
        raise UserError(f"{to} exists already; choose another file or replace it with --overwrite.")
    first = [metric, *(name for name in shared if name != metric)]
    heads = ["run", "method", "seed", *(metric_words(name) for name in first), "parameters", "seconds"]
    rows = [
        [
            run.folder,
            run.name,
            run.seed,
            *(run.metrics[name] for name in first),
            None if run.parameters is None else f"{run.parameters:,}",
            None if run.seconds is None else f"{run.seconds:,.0f}",
        ]
        for run in runs
    ]
    best: dict[int, Any] = {
        3 + place: which for place, name in enumerate(first) if (which := better(name)) is not None
    }
    groups: dict[str, list[float]] = {}
    for run in runs:
        groups.setdefault(run.name, []).append(run.metrics[metric])
    parts = [
        verdict(_judged(groups, metric, pairs)),
        f"<h2>{escape(metric_words(metric).capitalize())}</h2>",
        strip_chart(groups, f"{metric_words(metric)}; a dot for each run, a stroke at the mean"),
        *(f"<p>{escape(line)}.</p>" for line in pairs),
        "<h2>Runs</h2>",
        table(heads, rows, best),
    ]
    to.parent.mkdir(parents=True, exist_ok=True)
    write_file(to, page("Comparison of runs", parts))
    return to


def _judged(groups: dict[str, list[float]], metric: str, pairs: Sequence[str]) -> str:
    which = better(metric)
    if len(groups) < 2 or which is None:
        return f"{pairs[0]}." if pairs else f"{sum(map(len, groups.values()))} runs of {', '.join(groups)}."
    means = {name: sum(values) / len(values) for name, values in groups.items()}
    order = sorted(means, key=lambda name: means[name], reverse=which == "max")
    said = f"{order[0]} is first in {metric_words(metric)}: {means[order[0]]:.4f}, then {order[1]} "
    said += f"{means[order[1]]:.4f}"
    if not pairs:
        return f"{said}; no two methods share a seed, so nothing says whether that is chance."
    if len(pairs) == 1:
        return f"{said}; {pairs[0].rpartition(': ')[2]}."
    return f"{said}; the pairs below say which differences are told apart."
