"""What a sweep found: ``results.json``, a Markdown table, and a picture."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moe_adapt.evaluation.plots._matplotlib import pyplot_figure
from moe_adapt.files import write_file
from moe_adapt.manifest import collect
from moe_adapt.training.sweep.plan import Sweep, Trial
from moe_adapt.training.sweep.run import Outcome

__all__ = ["cell", "write_results"]


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
