"""Render benchmarks/results/drift.md from the JSON files there.

python benchmarks/drift/tables.py
"""

import json
from pathlib import Path
from typing import Any

from moe_adapt.drift.comparison.report import markdown_table, missing_cells_note
from moe_adapt.drift.comparison.summary import ranking, summarise, wins_and_losses
from moe_adapt.drift.streams.suites import SUITES

RESULTS = Path(__file__).resolve().parents[1] / "results"


def streams(content: dict[str, Any]) -> list[str]:
    results = content["results"]
    rows = {stream: next(iter(own.values()))[0]["rows"] for stream, own in results.items()}
    most = max(len(cells) for own in results.values() for cells in own.values())
    lines = [
        "## Streams",
        f"Prequential accuracy in %, mean ± standard deviation over up to {most} paired seeds (real streams: "
        "one, their rows have no seed). Rows: "
        + ", ".join(f"{name} {count:,}" for name, count in rows.items())
        + ".",
    ]
    lines += [f"{missing_cells_note(results)}", "\n".join(markdown_table(results, "accuracy"))]
    methods = list(dict.fromkeys(name for own in results.values() for name in own))
    kinds = {
        "synthetic": {name: own for name, own in results.items() if name in SUITES["arf"]},
        "real": {name: own for name, own in results.items() if name not in SUITES["arf"]},
        "": results,
    }
    for kind, part in kinds.items():
        found = ranking(part, methods)
        if found is not None:
            ranks = ", ".join(f"{name} {rank:.2f}" for name, rank in found.ranks.items())
            lines.append(
                f"Average ranks over {found.streams} of {len(part)} {kind or 'synthetic and real'} streams, "
                f"shared seeds: {ranks}. Friedman p = {found.p_value:.1e}, Nemenyi's critical difference "
                f"{found.critical_difference:.2f}."
            )
    for name in ("driftmoe", "driftmoe_data", "driftmoe_task"):
        lost = wins_and_losses(results, name)
        text = "; ".join(
            f"{stream}: " + ", ".join(f"{other} +{points:.1f}" for other, points in ahead.items())
            for stream, ahead in lost.items()
        )
        lines.append(f"Ahead of `{name}` (points, shared seeds): {text or 'nobody'}.")
    for metric, title in (
        ("kappa_m", "Kappa-M, %"),
        ("kappa_t", "Kappa-T, %"),
        ("cpu_us_per_row", "CPU µs per row"),
    ):
        lines += [f"### {title}", "\n".join(markdown_table(results, metric))]
    lines += ["### Size of the pickled model, MB", "\n".join(markdown_table(results, "model_mb"))]
    return lines


def whole(content: dict[str, Any]) -> list[str]:
    results = content["results"]
    rows = {stream: next(iter(own.values()))[0]["rows"] for stream, own in results.items()}
    lines = [
        "## Whole real streams",
        "Accuracy in %, rows in order of arrival; as many seeds as the spread says. Rows: "
        + ", ".join(f"{name} {count:,}" for name, count in rows.items())
        + ".",
        "\n".join(markdown_table(results, "accuracy")),
    ]
    lost = wins_and_losses(results, "driftmoe")
    text = "; ".join(
        f"{stream}: " + ", ".join(f"{other} +{points:.1f}" for other, points in ahead.items())
        for stream, ahead in lost.items()
    )
    return [*lines, f"Ahead of `driftmoe` (points, shared seeds): {text or 'nobody'}."]


def voices(content: dict[str, Any]) -> list[str]:
    lines = ablation(content)
    return ["## Voices of the default preset", *lines[1:]]


def ablation(content: dict[str, Any]) -> list[str]:
    results = content["results"]
    found = summarise(results, "accuracy")
    methods = list(dict.fromkeys(name for own in results.values() for name in own))
    full = methods[0]
    head = "| variant | " + " | ".join(results) + " | mean | to the preset |"
    lines = [head, "|" + "---|" * (len(results) + 3)]

    def mean(name: str) -> float:
        return sum(own[name][0] for own in found.values()) / len(found)

    for name in methods:
        if any(name not in own for own in found.values()):
            continue
        cells = " | ".join(f"{found[stream][name][0]:.2f}" for stream in results)
        lines.append(f"| {name} | {cells} | {mean(name):.2f} | {mean(name) - mean(full):+.2f} |")
    seeds = len(next(iter(results.values()))[full])
    text = f"Accuracy in %, mean over {seeds} seed(s) that no other table uses, 4,000 rows each."
    return ["## Parts of the preset of mode data", text, "\n".join(lines)]


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
    return ["## Throughput", text, "\n".join(lines)]


def main() -> None:
    parts = ["# Drift streams", "Rendered by `python benchmarks/drift/tables.py` from the JSON files here."]
    renders = {
        "streams": streams,
        "whole": whole,
        "voices": voices,
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
