"""What a comparison found: one table per metric, ranks over streams, what was lost to whom."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from moe_adapt.drift.ranks import Ranking, rank_methods

__all__ = ["METRICS", "Results", "ranking", "summarise", "wins_and_losses"]

#: Metric -> heading and factor.
METRICS = {
    "accuracy": ("accuracy, %", 100.0),
    "kappa": ("kappa, %", 100.0),
    "kappa_m": ("kappa-M, %", 100.0),
    "kappa_t": ("kappa-T, %", 100.0),
    "cpu_us_per_row": ("CPU time per row, µs", 1.0),
    "model_mb": ("model, MB", 1.0),
}

#: Results of all cells: stream -> method -> one result per seed.
Results = Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]


def summarise(results: Results, metric: str) -> dict[str, dict[str, tuple[float, float | None, int]]]:
    """Return stream -> method -> (mean, standard deviation over seeds, seeds), where there is a value.

    Args:
        results: Results of all cells.
        metric: A key of `METRICS`.
    """
    table: dict[str, dict[str, tuple[float, float | None, int]]] = {}
    for stream, methods in results.items():
        table[stream] = {}
        for method, cells in methods.items():
            values = [cell[metric] * METRICS[metric][1] for cell in cells if cell[metric] is not None]
            if values:
                spread = statistics.stdev(values) if len(values) > 1 else None
                table[stream][method] = (statistics.fmean(values), spread, len(values))
    return table


def _paired(results: Results, stream: str, methods: Sequence[str]) -> dict[str, float] | None:
    """Return mean accuracies over the seeds that all methods have on a stream; None if there are none."""
    own = [{cell["seed"]: cell["accuracy"] for cell in results[stream].get(method, ())} for method in methods]
    shared = set(own[0]).intersection(*own[1:]) if own else set()
    if not shared:
        return None
    return {
        m: statistics.fmean(cells[seed] for seed in shared) for m, cells in zip(methods, own, strict=True)
    }


def ranking(results: Results, methods: Sequence[str]) -> Ranking | None:
    """Rank methods by accuracy over the streams, and on each over the seeds, that all of them have.

    Args:
        results: Results of all cells.
        methods: The methods to rank.
    """
    means = [found for stream in results if (found := _paired(results, stream, methods)) is not None]
    if not means or len(methods) < 2:
        return None
    return rank_methods({method: [mean[method] for mean in means] for method in methods})


def wins_and_losses(results: Results, method: str) -> dict[str, dict[str, float]]:
    """Return stream -> other method -> its lead over `method` in points of accuracy, on shared seeds.

    Args:
        results: Results of all cells.
        method: The method in question.
    """
    lost: dict[str, dict[str, float]] = {}
    for stream, methods in results.items():
        for other in methods:
            pair = _paired(results, stream, [method, other]) if other != method else None
            if pair is not None and pair[other] > pair[method]:
                lost.setdefault(stream, {})[other] = 100 * (pair[other] - pair[method])
    return lost
