"""The report of a fine-tuning run: one HTML file with results, curves, mistakes, routing and costs."""

import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from moe_adapt.evaluation.html import facts, page, table, verdict
from moe_adapt.evaluation.svg import heat_map, line_chart
from moe_adapt.evaluation.words import metric_words, routing_sentences
from moe_adapt.files import write_file
from moe_adapt.runs.outcome import Outcome, result_rows
from moe_adapt.training.loggers import metric_curves

__all__ = ["REPORT_FILE", "judge", "write_report"]

REPORT_FILE = "report.html"

#: Fewer held-out rows than these tell little.
FEW = 30

#: The most classes whose confusion matrix is drawn; of more, the most frequent mistakes are listed.
DRAWN_CLASSES = 30


def judge(outcome: Outcome, name: str) -> str:
    """Return the sentence that the report begins with.

    Args:
        outcome: What the run reached.
        name: What the run is called.
    """
    if outcome.value is None:
        return f"{name}: the run had no held-out rows, so nothing says how good it is."
    words = metric_words(outcome.metric)
    f1 = "" if outcome.macro_f1 is None else f", macro F1 {outcome.macro_f1:.4f}"
    count = f"{outcome.rows:,} row{'s' if outcome.rows != 1 else ''}"
    said = f"{name}: {words} {outcome.value:.4f}{f1} ({count})"
    if not outcome.baselines:
        return f"{said}.{_caution(outcome)}"
    sign = 1 if outcome.higher_is_better else -1
    rival = max(outcome.baselines, key=lambda key: sign * outcome.baselines[key])
    gain = sign * (outcome.value - outcome.baselines[rival])
    one_row = 1 / max(outcome.rows, 1)
    if outcome.metric != "val/acc":
        word = "better than" if gain > 0 else "no better than"
    elif abs(gain) < 2 * one_row:
        word = "level with"
    else:
        word = "ahead of" if gain > 0 else "behind"
    return f"{said}, {word} the best baseline ({rival}, {outcome.baselines[rival]:.4f}).{_caution(outcome)}"


def _caution(outcome: Outcome) -> str:
    """Return what makes the result a weak one, after a space; nothing if nothing does."""
    parts = []
    if outcome.standard_error is not None and outcome.rows < FEW:
        parts.append(f"so few rows tell little (standard error {outcome.standard_error:.2f})")
    if outcome.unseen:
        named = ", ".join(outcome.unseen[:5]) + (", ..." if len(outcome.unseen) > 5 else "")
        parts.append(f"no held-out row is of {named}")
    if not parts:
        return ""
    said = "; ".join(parts)
    more = "hold out more with --data.validation_fraction or --data.validation"
    return f" {said[0].upper()}{said[1:]}: {more}."


def write_report(folder: Path, outcome: Outcome, name: str) -> Path:
    """Write ``report.html`` into a run's folder.

    Args:
        folder: The run's folder.
        outcome: What the run reached.
        name: What the run is called.
    """
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    words = metric_words(outcome.metric)
    which = "max" if outcome.higher_is_better else "min"
    parts = [
        verdict(judge(outcome, name)),
        "<h2>Result and baselines</h2>",
        table(["", words], result_rows(outcome, name), best={1: which}, digits=4),  # type: ignore[dict-item]
        _spread_note(outcome),
        *_curves(metric_curves(folder), words, outcome),
        *_mistakes(outcome),
        *_routing(folder, outcome),
        "<h2>Costs and origin</h2>",
        facts(_costs(manifest)),
    ]
    path = folder / REPORT_FILE
    write_file(path, page(f"Run {folder.name}", parts))
    return path


def _spread_note(outcome: Outcome) -> str:
    error = outcome.standard_error
    if error is None:
        return ""
    return (
        f'<p class="note">The standard error of an accuracy on {outcome.rows:,} rows is {error:.3f}: a '
        "difference below about three times that, on one seed, is none. The checkpoint was chosen on these "
        "rows; <code>moe-adapt test</code> measures on others.</p>"
    )


def _curves(found: Mapping[str, list[tuple[float, float]]], words: str, outcome: Outcome) -> list[str]:
    parts = []
    losses = {
        label: found[key]
        for key, label in (
            ("train/loss", "training"),
            ("train/loss_step", "training"),
            ("val/loss", "held-out"),
        )
        if key in found
    }
    if losses:
        parts += ["<h2>Loss</h2>", line_chart(losses, "step", "loss")]
    if outcome.metric in found and outcome.metric != "val/loss":
        curves = {"this run": found[outcome.metric]}
        steps = [step for step, _ in found[outcome.metric]]
        for key, value in outcome.baselines.items():
            curves[key] = [(0.0, value), (max(steps), value)]
        parts += [f"<h2>{escape(words.capitalize())}</h2>", line_chart(curves, "step", words)]
    return parts


def _mistakes(outcome: Outcome) -> list[str]:
    if not outcome.confusion:
        return []
    names = outcome.class_names or [str(number) for number in range(len(outcome.confusion))]
    parts = ["<h2>Which class is taken for which</h2>"]
    if len(names) <= DRAWN_CLASSES:
        shares = [[count / max(1, sum(row)) for count in row] for row in outcome.confusion]
        numbers = [[str(count) if count else "" for count in row] for row in outcome.confusion]
        parts += [
            heat_map(shares, names, names, numbers),
            '<p class="note">Rows are the true classes, columns what the model said.</p>',
        ]
    pairs = sorted(
        (
            (count, names[i], names[j])
            for i, row in enumerate(outcome.confusion)
            for j, count in enumerate(row)
            if i != j and count
        ),
        reverse=True,
    )
    if pairs:
        parts.append(
            table(["true class", "taken for", "rows"], [(a, b, n) for n, a, b in pairs[:12]], texts=True)
        )
    else:
        parts.append("<p>No held-out row is classified wrong.</p>")
    if outcome.worst:
        rows = [
            (row["text"], row["label"], row["prediction"], f"{row['probability']:.4f}")
            for row in outcome.worst
        ]
        parts += [
            "<h2>The rows it is most wrong about</h2>",
            table(["row", "true class", "taken for", "with probability"], rows, texts=True),
        ]
    return parts


def _routing(folder: Path, outcome: Outcome) -> list[str]:
    sentences = routing_sentences(outcome.routing)
    path = folder / "routing.json"
    if not sentences and not path.is_file():
        return []
    parts = ["<h2>Routing</h2>"]
    if sentences:
        said = "; ".join(sentences)
        parts.append(f"<p>{escape(said[0].upper() + said[1:])}.</p>")
    if path.is_file():
        load = json.loads(path.read_text(encoding="utf-8"))["load"]
        experts = max((len(shares) for shares in load.values()), default=0)
        if experts > 1:
            names = [".".join(site.split(".")[-4:]) for site in load]
            padded = [[*shares, *[0.0] * (experts - len(shares))] for shares in load.values()]
            parts += [
                heat_map(padded, names, [str(number) for number in range(experts)]),
                '<p class="note">Share of picks of each expert (column) in each layer (row) in the last '
                "epoch.</p>",
            ]
    return parts


def _costs(manifest: Mapping[str, Any]) -> dict[str, Any]:
    start = manifest.get("head_start") or {}
    seconds = manifest.get("wall_seconds")
    return {
        "trained parameters": f"{manifest.get('trainable_parameters', 0):,} of "
        f"{manifest.get('total_parameters', 0):,}",
        "steps, epochs": f"{manifest.get('steps')}, {manifest.get('epochs')}",
        "time": None if seconds is None else f"{seconds:,.1f} s",
        "peak memory": f"{manifest.get('peak_memory_mb')} MB",
        "device, precision": f"{manifest.get('device')}, {manifest.get('precision')}",
        "seed": manifest.get("seed"),
        "head starts from": start.get("kind", "as made"),
        "command": manifest.get("command"),
        "commit": manifest.get("git_commit"),
        "versions": ", ".join(f"{k} {v}" for k, v in (manifest.get("versions") or {}).items()),
    }
