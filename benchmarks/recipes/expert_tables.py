"""The tables of ``edit_experts.json`` and ``novelty.json``: edited pools, and signs that nothing is known."""

from typing import Any

from rendering import made_by, mean_and_spread

from moe_adapt.evaluation.equivalence import paired_difference

__all__ = ["edit_table", "novelty_table"]

#: Row that the others of a direction are set against, after healing.
AGAINST = {"down": "merged at random", "up": "random copies"}


def edit_table(report: dict[str, Any]) -> str:
    """Return the Markdown table of edited pools."""
    settings, rows = report["settings"], report["rows"]
    seeds = sorted({row["seed"] for row in rows})
    lines = [
        "## Fewer and more experts by use",
        "",
        f"Top-k adapters on MiniLM, the mixture of five tasks, {settings['train']} training and "
        f"{settings['test']} test rows per task, {len(seeds)} seed(s); accuracy as edited and after one more "
        "epoch. *error* is the mean relative error of what was merged. The last column is the paired "
        "difference after that epoch to the edit at random, with its 95 % interval.",
        "",
        "| direction | edit | parameters | error | as edited | one epoch later | against random |",
        "|---|---|---|---|---|---|---|",
    ]
    for direction, against in AGAINST.items():
        own = {row["seed"]: row["edits"] for row in rows if row["method"] == direction}
        for name in next(iter(own.values()), {}):
            values = [edits[name] for edits in own.values()]
            errors = [value["error"] for value in values if value["error"] is not None]
            pairs = [(edits[name]["after"], edits[against]["after"]) for edits in own.values()]
            cells = [
                "8 to 4" if direction == "down" else "4 to 8",
                name,
                f"{values[0]['parameters']:,}",
                mean_and_spread(errors, 2) if errors else "",
                mean_and_spread([value["before"] for value in values]),
                mean_and_spread([value["after"] for value in values]),
                "" if name == against else _difference(pairs, name, against),
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", made_by(rows[0]["manifest"])])


def _difference(pairs: list[tuple[float, float]], name: str, against: str) -> str:
    found = paired_difference(*zip(*pairs, strict=True), margin=0.01)
    if found.half_width is None:
        return f"{found.mean:+.3f}"
    return f"{found.mean:+.3f} ± {found.half_width:.3f}, {found.verdict(name, against, 0.01)}"


def novelty_table(report: dict[str, Any]) -> str:
    """Return the Markdown tables of signs of novelty."""
    settings = report["settings"]
    scope = [row for row in report["rows"] if row["method"] == "scope"]
    stream = [row for row in report["rows"] if row["method"] == "stream"]
    lines = [
        "## Signs that nothing is known",
        "",
        f"CLINC150, a top-k adapter of four experts on MiniLM, {settings['train']} training rows per intent, "
        f"{settings['test']} test rows of the intents and as many out of scope, {len(scope)} seed(s). AUROC:",
        "",
        "| sign | AUROC |",
        "|---|---|",
    ]
    for name in scope[0]["auroc"]:
        lines.append(f"| {name} | {mean_and_spread([row['auroc'][name] for row in scope])} |")
    told = {
        "out-of-scope rows without an answer": [row["abstained"]["out of scope"] for row in scope],
        "rows of the intents without an answer": [row["abstained"]["in scope"] for row in scope],
        "accuracy on the intents": [row["accuracy"] for row in scope],
        "accuracy where there is an answer": [row["accuracy_where_answered"] for row in scope],
    }
    lines += ["", "With both signs, calibrated so that 5 % of training rows lose their answer:", ""]
    lines += ["| | |", "|---|---|"]
    lines += [f"| {name} | {mean_and_spread(values)} |" for name, values in told.items()]
    if stream:
        lines += [
            "",
            "Three domains one after the other (400 rows of SST-2, AG News and CLINC150, borders at 400 and "
            "800), features of the frozen encoder; and the same rows shuffled, where every alarm is false:",
            "",
            "| seed | alarms at row | alarms on the shuffled stream |",
            "|---|---|---|",
        ]
        lines += [
            f"| {row['seed']} | {', '.join(map(str, row['alarms'])) or 'none'} | {row['false_alarms']} |"
            for row in stream
        ]
    return "\n".join([*lines, "", made_by(scope[0]["manifest"])])
