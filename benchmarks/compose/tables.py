"""Gather cells into reports, and render their tables and pictures.

    python benchmarks/compose/tables.py --runs runs/compose --tenants runs/tenants --render

writes ``benchmarks/results/compose.json`` (`compare.py`) and ``compose_tenants.json`` (`tenants.py`) from the
cells, and ``compose_language.json`` from those of ``--language``; ``--render`` writes ``compose.md`` and the
pictures of docs/compose.md from the first two and ``compose_cost.json`` (`cost.py`), and
``compose_language.md`` from the third.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from facts import portable
from intervals import (
    REFERENCE,
    best_merge,
    by_setting,
    having,
    means_of,
    of_tenants,
    seeds_note,
    spread,
    task_row,
    tenant_row,
    writing_row,
)
from pages import (
    adapters_in_short,
    customers_in_short,
    fill,
    groups_in_short,
    language_in_short,
    serving_in_short,
)
from pictures import draw

RESULTS = Path(__file__).resolve().parents[1] / "results"
PICTURES = Path(__file__).resolve().parents[2] / "docs" / "images"
#: What the forms of A are called.
FORMS = {
    "codes": "Eight text tasks, codes that collide",
    "names": "Eight text tasks, names of labels",
    "images": "Eight groups of Tiny-ImageNet classes by their numbers, codes that collide",
    "written_names": "Five tasks that a language model answers, names of labels",
    "written_codes": "Five tasks that a language model answers, codes that collide",
    "mixed_images": "Eight groups of Tiny-ImageNet classes at random, codes that collide",
}
#: Headings of B and C, and the order of their methods.
TENANTS = {
    "B": "Four tenants, 64 rows each, their names in every text",
    "C": "Hidden groups of tenants, 16 rows each, their names in every text",
}
TENANT_METHODS = (
    "plain LoRA",
    "by key",
    "shared and by key",
    "top-2 per token",
    "frozen random router",
    "per tenant",
    "true groups",
    "found groups",
    "random groups",
)


def accuracies(cells: list[dict[str, Any]]) -> str:
    """Return the accuracies of one form as a Markdown table."""
    lines = [
        "| | accuracy, % | of the right adapter's | LDA (320 texts) minus this, resampled | over seeds "
        "| right adapter found |",
        "|---|---|---|---|---|---|",
    ]
    names = list(dict.fromkeys(name for cell in cells for name in cell["accuracy"]))
    for name in sorted(names, key=lambda name: -statistics.mean(means_of(having(cells, name), name))):
        own = having(cells, name)
        means, oracle = means_of(own, name), means_of(own, "oracle")
        share = 100 * statistics.mean(v / o for v, o in zip(means, oracle, strict=True))
        hits = [cell["found"].get(name) for cell in own]
        hit = f"{100 * statistics.mean(hits):.1f} %" if None not in hits else ""
        label = f"**{name}**" if name in (REFERENCE, best_merge(cells)) else name
        row = task_row(cells, name)
        lines.append(
            f"| {label} | {row.accuracy} | {share:.1f} % | {row.resampled} | {row.over_seeds} | {hit} |"
        )
    return "\n".join(lines)


def seeds_told(seeds: int) -> str:
    """Return how many seeds there are; one says that nothing is known of the spread."""
    return f"{seeds} seeds" if seeds > 1 else "One seed, so no interval"


def removals(cells: list[dict[str, Any]]) -> str:
    """Return what removing each adapter did, averaged over adapters."""
    lines = ["| | % |", "|---|---|"]
    for label, key in (
        ("accuracy on its own rows before", "before"),
        ("accuracy on its own rows afterwards", "own rows"),
        ("the base on these rows", "base"),
        ("rows of other tasks that go elsewhere", "others moved"),
    ):
        values = [statistics.mean(task[key] for task in cell["removal"].values()) for cell in cells]
        lines.append(f"| {label} | {spread(values)} |")
    attacked = [cell["membership"] for cell in cells if "membership" in cell]
    for label, key in (
        ("attack on membership by the loss, area under its curve (50: knows nothing), before", "before"),
        ("the same afterwards", "after"),
        ("the same attack on the base", "base"),
    ):
        if attacked:
            values = [statistics.mean(task[key] for task in found.values()) for found in attacked]
            lines.append(f"| {label}{seeds_note(len(attacked), len(cells))} | {spread(values)} |")
    return "\n".join(lines)


def adapters(report: dict[str, Any]) -> str:
    """Return the tables of A."""
    parts = ["# Adapters that were trained apart\n"]
    for form in dict.fromkeys(cell["form"] for cell in report["cells"]):
        cells = [cell for cell in report["cells"] if cell["form"] == form]
        size = cells[0]["sizes"]["test"]
        parts.append(
            f"## {FORMS[form]}\n\n{seeds_told(len(cells))}, {size} test rows per task.\n\n"
            f"{accuracies(cells)}\n\nRemoving one adapter, LDA without abstention:\n\n{removals(cells)}\n"
        )
    return "\n".join(parts)


def written(cells: list[dict[str, Any]]) -> str:
    """Return which answers were written to the letter as a Markdown table."""
    lines = ["| | written exactly, % | LDA minus this, over rows |", "|---|---|---|"]
    for name in dict.fromkeys(name for cell in cells for name in cell["written"]):
        row = writing_row(cells, name)
        lines.append(f"| {name} | {row.accuracy} | {row.resampled} |")
    return "\n".join(lines)


def language(report: dict[str, Any]) -> str:
    """Return the tables of the language model."""
    parts = [adapters(report)]
    for form in dict.fromkeys(cell["form"] for cell in report["cells"]):
        cells = [cell for cell in report["cells"] if cell["form"] == form and "written" in cell]
        if cells:
            count = len(next(iter(cells[0]["written"][REFERENCE].values())))
            parts.append(f"## {FORMS[form]}: what is written\n\n{count} rows per task.\n\n{written(cells)}\n")
    return "\n".join(parts)


def tenants(report: dict[str, Any]) -> str:
    """Return the tables of B and C."""
    parts = []
    for part, heading in TENANTS.items():
        own = [cell for cell in report["cells"] if cell["part"] == part]
        if not own:
            continue
        parts.append(f"# {heading}\n")
        for setting, cells in by_setting(own):
            parts.append(f"{_setting(part, setting)}\n\n{_tenant_table(cells)}\n")
    return "\n".join(parts)


def _setting(part: str, setting: dict[str, Any]) -> str:
    if part == "B":
        return f"## They agree on {100 * setting['agreement']:.0f} % of the intents"
    return f"## {setting['tenants']} tenants, {setting['policies']} policies"


def _tenant_table(cells: list[dict[str, Any]]) -> str:
    by_method = of_tenants(cells)
    lines = [
        "| | accuracy, % | minus plain LoRA, resampled | over seeds | trainable values "
        "| learning rate, epochs |",
        "|---|---|---|---|---|---|",
    ]
    for method in TENANT_METHODS:
        row = tenant_row(by_method, method)
        if not row.accuracy:
            continue
        own = list(by_method[method].values())
        label = method
        if "adjusted_rand" in own[0]:
            rand = ", ".join(f"{cell['adjusted_rand']:.2f}" for cell in own)
            label += f" (adjusted Rand index {rand})"
        training = own[0]["training"]
        lines.append(
            f"| {label} | {row.accuracy} | {row.resampled} | {row.over_seeds} | {own[0]['parameters']:,} "
            f"| {training['lr']:g}, {training['epochs']} |"
        )
    return f"{seeds_told(len(by_method['plain LoRA']))}.\n\n" + "\n".join(lines)


def costs(report: dict[str, Any]) -> str:
    """Return the table of `cost.py`."""

    def more(found: dict[str, float]) -> str:
        low, middle, high = (100 * (found[k] - 1) for k in ("first quartile", "median", "third quartile"))
        return f"{middle:+.1f} % ({low:+.1f} to {high:+.1f})"

    one, gone = report["classification"], report["removal"]
    rows = [
        ("a forward of 32 texts, routed against known ids", more(one["routed / known ids"])),
        ("a forward of 32 texts, routed against one stock LoRA", more(one["routed / one LoRA"])),
        ("a forward of 32 texts, routed against the base", more(one["routed / base"])),
        ("seconds to add an adapter with 320 examples", f"{report['seconds to add, 320 examples']:.1f}"),
        ("seconds to remove an adapter", f"{gone['seconds to remove']:.1f}"),
        ("seconds to train that adapter", f"{report['seconds to train one adapter']:.1f}"),
        (
            f"rows that others answered, and are sent elsewhere after `{gone['removed']}` was removed",
            f"{gone['of these sent elsewhere']} of {gone['rows that others answered']}",
        ),
        (
            "rows whose adapter stays, bit-equal",
            f"{gone['of these bit-equal']} of {gone['rows answered by the same']}",
        ),
        (
            "its own rows that the base answers afterwards; bit-equal to the base alone",
            f"{gone['own rows the base answers now']} of {gone['own rows']}; "
            f"{gone['of these bit-equal to the base']}",
        ),
        (
            "tensors equal to those of an adapter that never had it; after adding and removing it again",
            f"{gone['equal to never having had it']}; {gone['equal after adding and removing again']}",
        ),
    ]
    if "generation" in report:
        told = more(report["generation"]["routed / known ids"])
        rows.insert(3, ("SmolLM2-135M, 4 prompts, 64 tokens each, routed against known ids", told))
    lines = [
        "# Cost and exactness\n",
        "Processor seconds, one thread; median and quartiles of paired turns.\n",
    ]
    return "\n".join([*lines, "| | |", "|---|---|", *(f"| {a} | {b} |" for a, b in rows)]) + "\n"


def gather(folder: Path, pattern: str, name: str) -> None:
    """Write the cells of a folder as one report."""
    cells = [json.loads(path.read_text()) for path in sorted(folder.glob(pattern))]
    for cell in cells:
        cell["manifest"] = portable(cell["manifest"])
    report: dict[str, Any] = {"cells": cells}
    if tried := {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("chosen*.json"))}:
        report["validation of what was tried"] = tried
    (RESULTS / name).write_text(json.dumps(report, indent=1) + "\n")


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--runs", type=Path)
    parser.add_argument("--tenants", type=Path)
    parser.add_argument("--language", type=Path)
    parser.add_argument("--render", action="store_true")
    args = parser.parse_args()
    if args.runs:
        gather(args.runs, "*/cell.json", "compose.json")
    if args.tenants:
        gather(args.tenants, "*-*-*-*-*-*.json", "compose_tenants.json")
    if args.language:
        gather(args.language, "*/cell.json", "compose_language.json")
    if args.render:
        render()


def render() -> None:
    """Write tables, pages and pictures from the reports."""
    parts, reports = [], {}
    for name, rendered in (("compose", adapters), ("compose_tenants", tenants), ("compose_cost", costs)):
        path = RESULTS / f"{name}.json"
        if path.is_file():
            reports[name] = json.loads(path.read_text())
            parts.append(rendered(reports[name]))
    (RESULTS / "compose.md").write_text("\n".join(parts))
    fill("compose.md", "adapters", adapters_in_short(reports["compose"]["cells"]))
    if "compose_tenants" in reports:
        cells = reports["compose_tenants"]["cells"]
        fill("customers.md", "customers", customers_in_short(cells))
        if groups := groups_in_short(cells):
            fill("customers.md", "groups", groups)
    path = RESULTS / "compose_language.json"
    if path.is_file():
        report = json.loads(path.read_text())
        (RESULTS / "compose_language.md").write_text(language(report))
        fill("compose.md", "language", language_in_short(report["cells"]))
    path = RESULTS / "compose_serving.json"
    if path.is_file():
        fill("compose.md", "serving", serving_in_short(json.loads(path.read_text())))
    draw(reports["compose"]["cells"], PICTURES)


if __name__ == "__main__":
    main()
