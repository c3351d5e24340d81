"""Tables and the Pareto picture of the comparison, rendered from the committed results."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from methods import MECHANISMS, METHODS
from paired import differences
from sequences import SEQUENCES

__all__ = ["RESULTS", "averages", "pareto", "render", "table"]

LABELS = {name: label for name, (label, *_) in (METHODS | MECHANISMS).items()}
HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "results"
START, END = "<!-- results -->", "<!-- end of results -->"


def averages(row: dict[str, Any]) -> dict[str, float]:
    """Return the metrics of one run: means over tasks, and drift where there is a routed pool.

    ``final`` mean accuracy after the last task, ``average`` the mean over steps of the mean over tasks
    seen, ``bwt`` the mean change from right after a task to the end, ``forgetting`` the mean drop from the
    best, ``plasticity`` the mean accuracy right after each task.
    """
    rates = np.array(row["correct"], dtype=float)
    rates[rates < 0] = np.nan
    rates = rates / np.array(row["total"])
    last = len(rates) - 1
    found = {"final": float(rates[last].mean())}
    own = np.diag(rates)
    if np.isfinite(own).all():
        found |= {
            "average": float(np.mean([np.nanmean(rates[step, : step + 1]) for step in range(last + 1)])),
            "bwt": float((rates[last] - own)[:last].mean()),
            "forgetting": float((np.nanmax(rates, axis=0) - rates[last])[:last].mean()),
            "plasticity": float(own.mean()),
        }
    attribution = row["attribution"]
    if attribution is not None:
        found |= {key: value for key, value in attribution["mean"].items() if not key.startswith("accuracy")}
    return found | {
        "parameters": row["report"]["trainable_parameters"],
        "stored_mb": row["report"]["stored_bytes"] / 2**20,
        "statistics_mb": row["report"].get("statistics_bytes", 0) / 2**20,
        "seconds": row["cpu_seconds"],
        "memory": row["peak_memory_mb"],
        "admission": row["report"].get("admission", {}).get("new", np.nan),
        **_form(row),
    }


def _form(row: dict[str, Any]) -> dict[str, float]:
    """Return final accuracy and backward transfer by verdict, and the artefact of format, task means."""
    if not row.get("verdicts"):
        return {}
    found, total = {}, np.array(row["total"])
    for name, counts in row["verdicts"].items():
        rates = np.array(counts) / total
        found[f"final_{name}"] = float(rates[-1].mean())
        found[f"bwt_{name}"] = float((rates[-1] - np.diag(rates))[:-1].mean())
    found["artefact"] = float(np.mean([task["artefact_exact"] for task in row["format_artefacts"]]))
    return found


def _spread(values: list[float], digits: int = 3) -> str:
    known = [value for value in values if np.isfinite(value)]
    if not known:
        return "-"
    mean = f"{np.mean(known):.{digits}f}"
    return mean if len(known) == 1 else f"{mean} ± {np.std(known, ddof=1):.{digits}f}"


def _rows(report: dict[str, Any]) -> dict[str, list[dict[str, float]]]:
    return {
        method: [averages(row) for row in report["rows"] if row["method"] == method]
        for method in LABELS
        if any(row["method"] == method for row in report["rows"])
    }


def table(report: dict[str, Any], columns: dict[str, tuple[str, int]], keep: Callable[[str], bool]) -> str:
    """Return a Markdown table with a row per method and a column per metric.

    Args:
        report: A result file.
        columns: Heading and digits of each metric.
        keep: Which methods have a row.
    """
    lines = ["| method | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for method, runs in _rows(report).items():
        if keep(method):
            cells = [
                _spread([run.get(key, np.nan) for run in runs], digits) for key, digits in columns.values()
            ]
            lines.append(f"| {LABELS[method]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


SCORES = {
    "final": ("final", 3),
    "average": ("average", 3),
    "BWT": ("bwt", 3),
    "forgetting": ("forgetting", 3),
    "plasticity": ("plasticity", 3),
}
COSTS = {
    "trainable": ("parameters", 0),
    "stored MB": ("stored_mb", 1),
    "statistics MB": ("statistics_mb", 1),
    "CPU s": ("seconds", 0),
}
DRIFT = {
    "agreement": ("top1", 3),
    "JS": ("js", 3),
    "stability": ("stability", 3),
    "leak": ("leak", 3),
    "logit change": ("logit_change", 3),
    "expert drift": ("expert_drift", 3),
    "drop by routers": ("drop_by_routers", 3),
    "drop by experts": ("drop_by_experts", 3),
    "admitted": ("admission", 3),
}

FORM = {
    **{f"final, {name}": (f"final_{name}", 3) for name in ("exact", "normalised", "likelihood")},
    **{f"BWT, {name}": (f"bwt_{name}", 3) for name in ("exact", "normalised", "likelihood")},
    "artefact of format": ("artefact", 3),
}


def pareto(report: dict[str, Any], path: Path) -> None:
    """Draw plasticity against stability (accuracy kept): up and right is better."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 5))
    for method, runs in _rows(report).items():
        points = [(run["plasticity"], run["bwt"]) for run in runs if "bwt" in run]
        if points:
            x, y = np.mean(points, axis=0)
            axes.plot(x, y, "o")
            axes.annotate(LABELS[method], (x, y), textcoords="offset points", xytext=(4, 3), fontsize=8)
    axes.set_xlabel("plasticity: accuracy right after each task")
    axes.set_ylabel("backward transfer: change until the end")
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def _section(name: str, report: dict[str, Any]) -> str:
    tasks = max(len(row["tasks"]) for row in report["rows"])
    orders = len({row["order"] for row in report["rows"]})
    settings = report["settings"]
    routed = {row["method"] for row in report["rows"] if row["attribution"] is not None}
    what = f"{orders} orders, mean ± standard deviation" if orders > 1 else "one order, so no spread is known"
    parts = [
        f"## {tasks} tasks, {name} sequence",
        f"{what}; {settings['train']} training and {settings['test']} test samples per task, "
        f"{settings['epochs']} epochs.",
        table(report, SCORES | COSTS, lambda method: True),
    ]
    if all(row.get("right") for row in report["rows"]):
        parts += [
            "Final accuracy beside that of sequential routed LoRA, paired by test row:",
            differences(report["rows"], LABELS),
        ]
    if routed:
        parts += [
            "Drift of routers and experts on test prompts of earlier tasks, from the end of each task to the "
            "end of the sequence, and what each cost (mean over tasks and orders):",
            table(report, DRIFT, lambda method: method in routed),
        ]
    if any(row.get("verdicts") for row in report["rows"]):
        parts += [
            "What the model writes, exactly and up to its form, beside the choice by likelihood. Artefact: "
            "the part of the drop under exact match that likelihood does not see:",
            table(report, FORM, lambda method: True),
        ]
    return "\n\n".join(parts)


def render() -> int:
    """Write the tables into README.md beside this file, and the picture into docs/images."""
    sections = []
    for name in SEQUENCES:
        path = RESULTS / f"continual_instructions_{name}.json"
        if path.is_file():
            report = json.loads(path.read_text())
            sections.append(_section(name, report))
            if name == "small":
                pareto(report, HERE.parents[1] / "docs" / "images" / "continual_instructions.png")
    cost = RESULTS / "update_cost.json"
    if cost.is_file():
        sections.append(_cost(json.loads(cost.read_text())))
    banks = RESULTS / "dymoe_step.json"
    if banks.is_file():
        sections.append(_banks(json.loads(banks.read_text())))
    readme = HERE / "README.md"
    before, _, rest = readme.read_text().partition(START)
    readme.write_text(f"{before}{START}\n\n" + "\n\n".join(sections) + f"\n\n{END}{rest.partition(END)[2]}")
    return 0


def _cost(report: dict[str, Any]) -> str:
    lines = [
        "## Cost of the transforms",
        "Part of a training step (forward, backward, AdamW) that statistics and transforms take; CPU time, "
        "one thread:",
        "| widths | tokens | tokens observed | step | statistics | transforms | both, share of a step "
        "| with a decomposition every 50 steps |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in report["rows"]:
        times = " | ".join(f"{row[key]:.1f} ms" for key in ("step_ms", "statistics_ms", "transforms_ms"))
        head = f"| {row['widths']} | {row['tokens']} | {row['observe_share']:.4g} of all"
        shares = " | ".join(f"{100 * row[k]:.1f} %" for k in ("share_of_step", "share_of_step_with_refresh"))
        lines.append(f"{head} | {times} | {shares} |")
    return "\n".join([lines[0], "", lines[1], "", *lines[2:]])


def _banks(report: dict[str, Any]) -> str:
    lines = [
        "## DyMoE's step against the number of banks",
        "",
        f"Widths {report['width']} and {4 * report['width']}, {report['tokens']} tokens, one bank per task; "
        "CPU time, one thread. Frozen experts have no parameter gradients and no optimizer state; their part "
        "of the backward pass is the gradient with respect to their inputs.",
        "",
        "| banks | old banks | forward | backward | AdamW | step | against one bank | backward, MFLOP |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in report["rows"]:
        old = "-" if row["banks"] == 1 else "frozen" if row["old_banks_frozen"] else "trained (control)"
        times = " | ".join(
            f"{row[f'{part}_ms']:.1f} ms" for part in ("forward", "backward", "optimizer", "step")
        )
        cells = f"{row['times_one_bank']:.2f} | {row['backward_mflop']:.0f}"
        lines.append(f"| {row['banks']} | {old} | {times} | {cells} |")
    return "\n".join(lines)
