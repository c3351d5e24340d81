"""The page of ``mechanisms.json``: one table per experiment, and the paired differences to its baseline."""

import json
from pathlib import Path
from typing import Any

from frame import Experiment
from rendering import mean_and_spread

from moe_adapt.evaluation.equivalence import paired_difference

__all__ = ["experiment_table", "render"]

HEAD = """# Single mechanisms

What each mechanism does in an experiment of its own. All are small: they show whether a part does what it is
for, not how it ranks. Values are means over seeds with their standard deviation. *difference* is paired by
seed, with its 95 % interval: *equal* where two one-sided tests at 5 % put it within the margin, *higher* or
*lower* where it differs from zero. Without a word it is not told apart. Nothing was chosen on rows that are
judged.

Rendered by `python benchmarks/mechanisms/run.py --render` from `mechanisms.json`, where every row names its
manifest."""


def difference(experiment: Experiment, rows: list[dict[str, Any]], variant: str) -> str:
    """Return the paired difference of a variant to the baseline in words."""
    key = experiment.judged
    values = {(row["variant"], row["seed"]): row.get(key) for row in rows}
    pairs = [
        (own, values.get((experiment.baseline, seed)))
        for (name, seed), own in values.items()
        if name == variant and own is not None and values.get((experiment.baseline, seed)) is not None
    ]
    if variant == experiment.baseline or not pairs:
        return ""
    found = paired_difference(*zip(*pairs, strict=True), margin=experiment.margin)  # type: ignore[arg-type]
    if found.half_width is None:
        return f"{found.mean:+.3f}"
    verdict = found.verdict("higher", "lower", experiment.margin).removesuffix(" higher")
    words = "" if verdict == "not told apart" else f", {verdict}"
    return f"{found.mean:+.3f} ± {found.half_width:.3f}{words}"


def experiment_table(name: str, experiment: Experiment, report: dict[str, Any]) -> str:
    """Return heading, text and table of one experiment."""
    rows = report["experiments"][name]["rows"]
    seeds = len({row["seed"] for row in rows})
    heads = ["variant", *experiment.heads.values()]
    if experiment.baseline is not None:
        heads.append(f"difference in {experiment.heads[experiment.judged]}")
    lines = [f"## {experiment.title}", "", experiment.text, ""]
    lines += ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for variant in dict.fromkeys(row["variant"] for row in rows):
        own = [row for row in rows if row["variant"] == variant]
        cells = [variant]
        for key in experiment.heads:
            values = [row[key] for row in own if row.get(key) is not None]
            cells.append(mean_and_spread(values) if values else "")
        if experiment.baseline is not None:
            cells.append(difference(experiment, rows, variant))
        lines.append("| " + " | ".join(cells) + " |")
    manifest = report["manifests"][rows[0]["manifest"]]
    counted = "1 seed" if seeds == 1 else f"{seeds} seeds"
    lines += ["", f"{counted}; `{manifest['command']}`, {manifest['cpu_threads']} thread(s)."]
    return "\n".join(lines)


def render(found: dict[str, Experiment], results: Path) -> None:
    """Write ``mechanisms.md`` from ``mechanisms.json``."""
    report = json.loads((results / "mechanisms.json").read_text())
    parts = [
        experiment_table(name, own, report) for name, own in found.items() if name in report["experiments"]
    ]
    (results / "mechanisms.md").write_text("\n\n".join([HEAD, *parts]) + "\n")
