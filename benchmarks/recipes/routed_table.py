"""The table of ``benchmarks/results/routed_lora.json``: routed methods and controls at equal parameters."""

import statistics
from typing import Any

from rendering import made_by, mean_and_spread

__all__ = ["routed_table"]


def _ratio(rows: list[dict[str, Any]], base: dict[int, dict[str, Any]], key: str) -> str:
    """Return the median ratio to plain LoRA of equal size with the same seed."""
    ratios = [row[key] / base[row["seed"]][key] for row in rows if row["seed"] in base]
    return f"{statistics.median(ratios):.2f}" if ratios else ""


def routed_table(report: dict[str, Any]) -> str:
    """Return the Markdown table of the comparison."""
    settings, tasks = report["settings"], [name for name in report["rows"][0]["accuracy"] if name != "mean"]
    base = {row["seed"]: row for row in report["rows"] if row["method"] == "lora_equal"}
    heads = ["method", "seeds", "parameters", "mean", *tasks, "dense gates", "step", "memory"]
    lines = [
        "## Routed LoRA at equal parameters: MiniLM on a mixture of five tasks",
        "",
        f"{settings['train']} training rows per task, {settings['epochs']} epochs, {settings['test']} test "
        "rows per task; accuracy, mean ± standard deviation over seeds. Experts on query, value and the "
        "feed-forward layers; one learning rate for all. LoRA-Mixer is tested with its three best experts "
        "and, under *dense gates*, with all. *step* is process CPU time of a training step, with losses of "
        "routers, relative to plain LoRA of equal size with the same seed; *memory* is what training adds "
        "to the resident peak, likewise. The last rows are controls.",
        "",
        "| " + " | ".join(heads) + " |",
        "|---" * len(heads) + "|",
    ]
    for method in dict.fromkeys(row["method"] for row in report["rows"]):
        rows = [row for row in report["rows"] if row["method"] == method]
        dense = [row["accuracy_dense"]["mean"] for row in rows if "accuracy_dense" in row]
        cells = [
            rows[0]["label"],
            str(len(rows)),
            f"{rows[0]['trainable_parameters']:,}",
            mean_and_spread([row["accuracy"]["mean"] for row in rows]),
            *(mean_and_spread([row["accuracy"][task] for row in rows], 2) for task in tasks),
            mean_and_spread(dense) if dense else "",
            _ratio(rows, base, "cpu_seconds_per_step"),
            _ratio(rows, base, "training_memory_mb"),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", made_by(report["manifest"])]
    return "\n".join(lines)
