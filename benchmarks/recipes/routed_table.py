"""The tables of ``routed_lora.json`` and ``routed_language.json``: routed methods at equal parameters."""

import statistics
from typing import Any

from rendering import made_by, mean_and_spread

from moe_adapt.evaluation.equivalence import paired_difference

__all__ = ["language_table", "routed_table"]


def _ratio(rows: list[dict[str, Any]], base: dict[int, dict[str, Any]], key: str) -> str:
    """Return the median ratio to plain LoRA of equal size with the same seed."""
    ratios = [row[key] / base[row["seed"]][key] for row in rows if row["seed"] in base]
    return f"{statistics.median(ratios):.2f}" if ratios else ""


def _step(rows: list[dict[str, Any]], base: dict[int, dict[str, Any]]) -> str:
    """Return the time of a step relative to plain LoRA: in the same process, or with the same seed.

    Nothing is said of rows without a value: their first steps, in a cold process, were no measure.
    """
    if "step_to_lora" not in rows[0]:
        return _ratio(rows, base, "cpu_seconds_per_step")
    own = [row["step_to_lora"] for row in rows if row["step_to_lora"] is not None]
    return f"{statistics.median(own):.2f}" if own else ""


#: Difference of mean accuracies below which two methods are equal for practical purposes.
MARGIN = 0.01


def _against(rows: list[dict[str, Any]], base: dict[int, dict[str, Any]]) -> str:
    """Return the paired difference to plain LoRA of equal size, and what it shows."""
    pairs = [
        (row["accuracy"]["mean"], base[row["seed"]]["accuracy"]["mean"])
        for row in rows
        if row["seed"] in base
    ]
    if rows[0]["method"] == "lora_equal" or not pairs:
        return ""
    found = paired_difference(*zip(*pairs, strict=True), margin=MARGIN)
    if found.half_width is None:
        return f"{found.mean:+.3f}"
    verdict = found.verdict("higher", "lower", MARGIN).removesuffix(" higher")
    return f"{found.mean:+.3f} ± {found.half_width:.3f}, {verdict}"


def routed_table(report: dict[str, Any]) -> str:
    """Return the Markdown table of the comparison."""
    settings, tasks = report["settings"], [name for name in report["rows"][0]["accuracy"] if name != "mean"]
    base = {row["seed"]: row for row in report["rows"] if row["method"] == "lora_equal"}
    heads = ["method", "seeds", "parameters", "mean", "against LoRA", *tasks, "dense gates", "step", "memory"]
    lines = [
        "## Routed LoRA at equal parameters: MiniLM on a mixture of five tasks",
        "",
        f"{settings['train']} training rows per task, {settings['epochs']} epochs, {settings['test']} test "
        "rows per task; accuracy, mean ± standard deviation over seeds. Experts on query, value and the "
        "feed-forward layers; one learning rate for all. LoRA-Mixer is tested with its three best experts "
        "and, under *dense gates*, with all. *step* is process CPU time of a training step, with losses of "
        "routers, relative to plain LoRA of equal size with the same seed (empty where it was not "
        "measured well); *memory* is what training adds to the resident peak, likewise. *against LoRA* is "
        "the difference of the means, paired by seed, with "
        f"its 95 % interval: *equal* where two one-sided tests at 5 % put it within {MARGIN}, *higher* or "
        "*lower* where it differs from zero. The last rows are controls.",
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
            _against(rows, base),
            *(mean_and_spread([row["accuracy"][task] for row in rows], 2) for task in tasks),
            mean_and_spread(dense) if dense else "",
            _step(rows, base),
            _ratio(rows, base, "training_memory_mb"),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", made_by(report["manifest"])]
    return "\n".join(lines)


def language_table(report: dict[str, Any]) -> str:
    """Return the Markdown table of the comparison on SmolLM2."""
    settings, rows = report["settings"], report["rows"]
    tasks = [name for name in rows[0]["acc"] if name != "mean"]
    base = {row["seed"]: row for row in rows if row["method"] == "lora_equal"}
    heads = ["method", "parameters", "mean", *tasks, "mean, per token", "step", "memory"]
    seeds = len({row["seed"] for row in rows})
    lines = [
        "## Routed LoRA on a language model: SmolLM2-135M on four sets of questions",
        "",
        f"{settings['train']} training questions per set, one epoch of {settings['batch']} per step, "
        f"{settings['test']} test questions per set, {seeds} seed(s): enough to see that each method works "
        "and what it costs, not to rank them. Accuracy of the choice with the highest summed likelihood, "
        "and under *mean, per token* with the highest likelihood per token. *step* and *memory* are relative "
        "to plain LoRA of equal size.",
        "",
        "| " + " | ".join(heads) + " |",
        "|---" * len(heads) + "|",
    ]
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        costs = ("cpu_seconds_per_step", "training_memory_mb")
        cells = [
            own[0]["label"],
            f"{own[0]['trainable_parameters']:,}",
            mean_and_spread([row["acc"]["mean"] for row in own]),
            *(mean_and_spread([row["acc"][task] for row in own], 2) for task in tasks),
            mean_and_spread([row["acc_norm"]["mean"] for row in own]),
            *(_ratio(own, base, key) if key in own[0] else "" for key in costs),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", made_by(report["manifest"])]
    return "\n".join(lines)
