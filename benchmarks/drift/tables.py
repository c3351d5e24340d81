"""Render benchmarks/results/drift.md from the JSON files there.

python benchmarks/drift/tables.py
"""

import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np

from moe_adapt.drift.comparison.leads import lead, lead_table
from moe_adapt.drift.comparison.recipe import read_recipe
from moe_adapt.drift.comparison.report import markdown_table
from moe_adapt.drift.comparison.summary import Results, ranking, summarise, wins_and_losses
from moe_adapt.drift.intervals import paired_block_interval
from moe_adapt.drift.streams.suites import SUITES

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "results"


#: What is no rival of the default: its other modes.
OWN = ("driftmoe_data", "driftmoe_task", "driftmoe_paper")
LEAD = (
    "In brackets the seeds; on synthetic streams those that both have. The difference is ours minus the best "
    "of the others, with a 95 % interval: a paired block bootstrap over rows and seeds, or Student's over "
    "paired seeds where a rival's rows were not kept. With one seed of a method its spread is not in the "
    "interval. The best of the others was picked by its mean, which favours it. `capymoa_` are CapyMOA's "
    "learners; the other rivals are River's."
)


def row_counts(results: Results) -> str:
    counts = {stream: next(iter(own.values()))[0]["rows"] for stream, own in results.items()}
    return "Rows: " + ", ".join(f"{name} {count:,}" for name, count in counts.items()) + "."


def not_run(results: Results, *recipes: str) -> str:
    """Return which methods of some recipes a stream lacks, in words."""
    asked = [one.name for name in recipes for one in read_recipe(HERE / f"{name}.yaml").methods]
    gaps = {method: [stream for stream, own in results.items() if method not in own] for method in asked}
    text = "; ".join(
        f"`{method}` on " + (", ".join(gap) if len(gap) < len(results) else "all")
        for method, gap in gaps.items()
        if gap
    )
    return f"Not run, for want of processor time: {text}." if text else ""


def leads(results: Results) -> str:
    same_rows = {stream: stream not in SUITES["arf"] for stream in results}
    return "\n".join(lead_table(results, "driftmoe", same_rows, OWN))


def losses(results: Results, name: str) -> str:
    text = "; ".join(
        f"{stream}: " + ", ".join(f"{other} +{points:.1f}" for other, points in ahead.items())
        for stream, ahead in wins_and_losses(results, name).items()
    )
    return f"Ahead of `{name}` (points, shared seeds): {text or 'nobody'}."


def ranks(kind: str, results: Results) -> str:
    names = dict.fromkeys(name for own in results.values() for name in own)
    everywhere = [name for name in names if all(name in own for own in results.values())]
    found = ranking(results, everywhere)
    if found is None:
        return ""
    text = ", ".join(f"{name} {rank:.2f}" for name, rank in found.ranks.items())
    return (
        f"Average ranks over the {found.streams} {kind} streams, shared seeds: {text}. "
        f"Friedman p = {found.p_value:.1e}, Nemenyi's critical difference {found.critical_difference:.2f}."
    )


def streams(content: dict[str, Any]) -> list[str]:
    results = content["results"]
    synthetic = {name: own for name, own in results.items() if name in SUITES["arf"]}
    real = {name: own for name, own in results.items() if name not in SUITES["arf"]}
    lines = [
        "## Who is first",
        f"`driftmoe` is the default preset. {LEAD} {row_counts(results)}",
        not_run(results, "streams", "capymoa"),
        leads(results),
        "## Streams",
        "Prequential accuracy in %, mean ± standard deviation over seeds: of rows and learners on synthetic "
        "streams, of learners alone on real ones. A number without a spread is of one seed.",
    ]
    for kind, part in (("synthetic", synthetic), ("real", real)):
        lines += [
            f"### Accuracy, {kind} streams",
            "\n".join(markdown_table(part, "accuracy")),
            ranks(kind, part),
        ]
    lines += [losses(results, name) for name in ("driftmoe", *OWN[:2])]
    for metric, title in (
        ("kappa_m", "Kappa-M, %"),
        ("kappa_t", "Kappa-T, %"),
        ("cpu_us_per_row", "CPU µs per row"),
    ):
        lines += [f"### {title}", "\n".join(markdown_table(results, metric))]
    measured = {
        stream: {name: cells for name, cells in own.items() if cells[0]["model_mb"] is not None}
        for stream, own in results.items()
    }
    return [*lines, "### Size of the pickled model, MB", "\n".join(markdown_table(measured, "model_mb"))]


def judged(title: str, text: str, results: Any) -> list[str]:
    """Return a table of accuracies with who leads and where ours loses."""
    return [
        title,
        f"{text} {row_counts(results)}",
        leads(results),
        "\n".join(markdown_table(results, "accuracy")),
        losses(results, "driftmoe"),
    ]


def whole(content: dict[str, Any]) -> list[str]:
    results = content["results"]
    text = f"Rows in order of arrival. {not_run(results, 'whole')}"
    return judged("## Whole real streams", text, results)


def delayed(content: dict[str, Any]) -> list[str]:
    results = content["results"]
    text = f"Every row is predicted when it comes and learned 100 rows later. {not_run(results, 'delayed')}"
    return judged("## Labels 100 rows late", text, results)


def voices(content: dict[str, Any]) -> list[str]:
    return ["## Voices of the default preset", *without_parts(content)]


def ablation(content: dict[str, Any]) -> list[str]:
    return ["## Parts of the preset of mode data", *without_parts(content)]


def without_parts(content: dict[str, Any]) -> list[str]:
    """Return a table of differences to the first method."""
    results = content["results"]
    found = summarise(results, "accuracy")
    full, *others = dict.fromkeys(name for own in results.values() for name in own)
    others = [name for name in others if all(name in own for own in results.values())]
    means = statistics.fmean(own[full][0] for own in found.values())
    first = " | ".join(f"{found[stream][full][0]:.2f}" for stream in results)
    lines = [
        "| variant | " + " | ".join(results) + " | mean |",
        "|" + "---|" * (len(results) + 2),
        f"| {full} | {first} | {means:.2f} |",
    ]
    for name in others:
        cells = []
        for stream, own in results.items():
            ahead = lead(own, name, [full], same_rows=stream not in SUITES["arf"])
            assert ahead is not None
            cells.append(f"{ahead.points:+.2f}" + ("*" if ahead.low > 0 or ahead.high < 0 else ""))
        mean = statistics.fmean(own[name][0] - own[full][0] for own in found.values())
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {mean:+.2f} |")
    seeds = len(next(iter(results.values()))[full])
    text = (
        f"Accuracy in %, mean over {seeds} seed(s), on streams and seeds that the first table does not have; "
        "below the first line the difference to it. A star: its 95 % interval, as above, leaves out 0. "
        + row_counts(results)
    )
    return [text, "\n".join(lines)]


def nearest(content: dict[str, Any]) -> list[str]:
    """Return a table of the variants of the nearest rows: differences to the first one."""
    results, unit = content["results"], content["unit"]
    names = list(dict.fromkeys(name for own in results.values() for name in own))
    lines = [
        "| nearest rows | " + " | ".join(f"{family} ({len(own[names[0]]['alone'])})" for family, own in
        results.items()) + " | mean |",
        "|" + "---|" * (len(results) + 2),
    ]  # fmt: skip
    for name in names:
        cells, points = [], []
        for own in results.values():
            first, second = (
                np.array(list(own[one].get("committee", own[one]["alone"]).values()))
                for one in (name, names[0])
            )
            if name == names[0]:
                points.append(100 * float(first.mean()) / unit)
                cells.append(f"{points[-1]:.2f}")
                continue
            sizes = np.full(first.shape[1], unit)
            ahead, low, high = paired_block_interval(first, second, sizes, same_rows=False)
            points.append(100 * ahead)
            cells.append(f"{points[-1]:+.2f}" + ("*" if low > 0 or high < 0 else ""))
        mean = statistics.fmean(points)
        cells.append(f"{mean:.2f}" if name == names[0] else f"{mean:+.2f}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    text = (
        "Accuracy in % of the default with another voice of nearest rows, and below the first line the "
        "difference to it. A star: its 95 % interval, a paired block bootstrap, leaves out 0. "
        + ("`capymoa_samknn` runs alone. " if "capymoa_samknn" in names else "CapyMOA's SAMkNN was not run. ")
        + "In brackets the segments of a real stream or the seeds of a generator. "
        "No other table has these rows: the default was chosen on them. LED, SEA and AGR begin the same rows "
        "anew after every drift, as MOA's do, here every 2,000 rows; 5,000 rows find them again."
    )
    return ["## Nearest rows", text, "\n".join(lines)]


def throughput(content: dict[str, Any]) -> list[str]:
    own = content["streams"]
    names = list(next(iter(own.values())))
    lines = ["| variant | " + " | ".join(own) + " |", "|" + "---|" * (len(own) + 1)]
    for name in names:
        cells = (f"{own[s][name]['rows_per_second']:,.0f} ({own[s][name]['ratio']:.2f})" for s in own)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    text = (
        "Rows per second of CPU time, predict and learn, one thread; in brackets the time as a multiple of "
        "the first line's, median over turns in which the variants take the same rows one after the other. "
        "Nominal columns are declared (LED: all 24). The machine was shared, so the ratios are worth more "
        "than the rates. "
    )
    capymoa = content["settings"].get("capymoa")
    text += (
        f"CapyMOA {capymoa} ran in a process of its own, Java's compiler and collector counted."
        if capymoa
        else "CapyMOA was not installed and has no row."
    )
    first, later = content["starts"].values()
    text += (
        f" The first row is learned after {later['row 1']:.1f} s of CPU time, imports included. Where nothing"
        f" is compiled yet that takes {first['row 1']:.0f} s, and {first['row 64']:.0f} s to the 64th row."
    )
    return ["## Throughput", text, "\n".join(lines)]


def main() -> None:
    parts = ["# Drift streams", "Rendered by `python benchmarks/drift/tables.py` from the JSON files here."]
    renders = {
        "streams": streams,
        "whole": whole,
        "delayed": delayed,
        "voices": voices,
        "neighbours": nearest,
        "ablation": ablation,
        "throughput": throughput,
    }
    for name, render in renders.items():
        path = RESULTS / f"drift_{name}.json"
        if path.is_file():
            parts += render(json.loads(path.read_text(encoding="utf-8")))
    (RESULTS / "drift.md").write_text("\n\n".join(part for part in parts if part) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
