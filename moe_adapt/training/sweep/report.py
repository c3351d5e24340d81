"""What a sweep found: ``results.json``, a Markdown table, and a picture."""

import json
import statistics
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from moe_adapt.evaluation.html import page, verdict
from moe_adapt.evaluation.html import table as html_table
from moe_adapt.evaluation.plots._matplotlib import pyplot_figure
from moe_adapt.evaluation.svg import strip_chart
from moe_adapt.evaluation.words import better, method_words, metric_words
from moe_adapt.files import write_file
from moe_adapt.manifest import collect
from moe_adapt.training.sweep.plan import Sweep, Trial
from moe_adapt.training.sweep.run import Outcome

__all__ = ["cell", "write_results"]

#: Metrics that the page orders by, if the sweep names none.
PREFERRED = ("test/acc", "val/acc", "final_accuracy", "val/loss")


def cell(values: Sequence[float]) -> str:
    """Return ``mean ± standard deviation (n)``; a single value stands alone.

    >>> cell([0.5, 0.7]), cell([0.5]), cell([])
    ('0.600 ± 0.141 (2)', '0.500', '-')
    """
    if not values:
        return "-"
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f} ({len(values)})"


def write_results(sweep: Sweep, outcomes: Sequence[Outcome], out: Path) -> str:
    """Write the results of all finished trials and return the table.

    Args:
        sweep: The sweep.
        outcomes: How its trials ended.
        out: Folder to write into.
    """
    rows = [_row(outcome) for outcome in outcomes]
    content = {"manifest": collect(), "metric": sweep.metric, "trials": rows}
    write_file(out / "results.json", json.dumps(content, indent=1) + "\n")
    table = _table(sweep)
    failed = [outcome for outcome in outcomes if outcome.status == "failed"]
    if failed:
        lines = [f"* {o.trial.task}/{o.trial.method}/{o.trial.seed}: {o.error}" for o in failed]
        table += "\n\nFailed:\n\n" + "\n".join(lines)
    write_file(out / "results.md", table + "\n")
    write_file(out / "results.html", _page(sweep, failed))
    if sweep.metric is not None:
        _draw(sweep, out / "results.png")
    return table


def _row(outcome: Outcome) -> dict[str, Any]:
    trial = outcome.trial
    return {
        "task": trial.task,
        "method": trial.method,
        "seed": trial.seed,
        "status": outcome.status,
        "seconds": round(outcome.seconds, 2),
        "error": outcome.error,
        "metrics": trial.metrics() or {},
    }


def _grouped(trials: Sequence[Trial]) -> dict[tuple[str, str], list[dict[str, float]]]:
    groups: dict[tuple[str, str], list[dict[str, float]]] = {}
    for trial in trials:
        groups.setdefault((trial.task, trial.method), []).append(trial.metrics() or {})
    return groups


def _table(sweep: Sweep) -> str:
    groups = _grouped(sweep.trials)
    found = sorted({name for runs in groups.values() for metrics in runs for name in metrics})
    names = found if sweep.metric is None else [sweep.metric]
    lines = [["task", "method", *names], ["---"] * (2 + len(names))]
    for (task, method), runs in groups.items():
        cells = [cell([metrics[name] for metrics in runs if name in metrics]) for name in names]
        lines.append([task, method, *cells])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _page(sweep: Sweep, failed: Sequence[Outcome]) -> str:
    """Return the results as a page: who is first in each task, the means, a picture of each task."""
    groups = _grouped(sweep.trials)
    found = sorted({name for runs in groups.values() for metrics in runs for name in metrics})
    metric = sweep.metric or next((name for name in PREFERRED if name in found), None)
    by_task: dict[str, dict[str, list[float]]] = {}
    for (task, method), runs in groups.items():
        values = [metrics[metric] for metrics in runs if metric in metrics]
        by_task.setdefault(task, {})[method_words(method)] = values
    words = metric_words(metric or "")
    which: Any = better(metric or "")
    parts = [verdict(_judged(by_task, metric))]
    for task, methods in by_task.items():
        rows = [(method, *_summary(values)) for method, values in methods.items()]
        parts += [
            f"<h2>{escape(task)}</h2>",
            html_table(["", "mean", "sd", "runs"], rows, which and {1: which}),
            strip_chart(methods, f"{words}; a dot for each seed, a stroke at the mean"),
        ]
    if failed:
        lines = [(f"{o.trial.task}/{o.trial.method}/{o.trial.seed}", o.error) for o in failed]
        parts += ["<h2>Failed</h2>", html_table(["trial", "last line"], lines, texts=True)]
    return page("Sweep", parts)


def _summary(values: Sequence[float]) -> tuple[float | None, float | None, int]:
    if not values:
        return None, None, 0
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None, len(values)


def _judged(by_task: Mapping[str, Mapping[str, Sequence[float]]], metric: str | None) -> str:
    which = better(metric or "")
    if which is None:
        return f"{sum(map(len, by_task.values()))} cells, without a metric to order them by."
    firsts = []
    for task, methods in by_task.items():
        means = {name: statistics.mean(values) for name, values in methods.items() if values}
        if means:
            first = (max if which == "max" else min)(means, key=lambda name: means[name])
            firsts.append(f"{first} on {task} ({means[first]:.3f})")
    return f"First in {metric_words(metric or '')}: {', '.join(firsts) or 'nobody, nothing finished'}."


def _draw(sweep: Sweep, path: Path) -> None:
    assert sweep.metric is not None
    groups = _grouped(sweep.trials)
    tasks = list(dict.fromkeys(task for task, _ in groups))
    methods = list(dict.fromkeys(method for _, method in groups))
    figure, (axes,) = pyplot_figure(1.5 + 1.2 * len(tasks) * max(2, len(methods)) / 2, 4, [1.0])
    for number, method in enumerate(methods):
        runs = [[m[sweep.metric] for m in groups[task, method] if sweep.metric in m] for task in tasks]
        places = [
            index + (number - (len(methods) - 1) / 2) * 0.8 / len(methods) for index in range(len(tasks))
        ]
        shown = [(place, values) for place, values in zip(places, runs, strict=True) if values]
        axes.errorbar(
            [place for place, _ in shown],
            [statistics.mean(values) for _, values in shown],
            yerr=[statistics.stdev(values) if len(values) > 1 else 0.0 for _, values in shown],
            fmt="o",
            capsize=3,
            label=method,
        )
    axes.set_xticks(range(len(tasks)), tasks)
    axes.set_ylabel(sweep.metric)
    axes.set_title("mean and standard deviation over seeds", fontsize="medium")
    axes.legend(fontsize="small")
    write_file(path, lambda file: figure.savefig(file, dpi=120, format="png"))
