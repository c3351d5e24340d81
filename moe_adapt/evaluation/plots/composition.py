"""A picture of a composed adapter: who went where, and accuracy by method."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from moe_adapt.evaluation.plots._matplotlib import pyplot_figure

__all__ = ["plot_composition"]


def plot_composition(
    accuracy: Mapping[str, Mapping[str, float]],
    routing: Mapping[str, Sequence[int]],
    columns: Sequence[str],
    path: str | Path,
) -> None:
    """Draw the table of routes and the mean accuracies.

    Args:
        accuracy: By method and expert, with the mean.
        routing: How many rows of each expert went to each column.
        columns: Names of the experts, and the base.
        path: File to write.

    Raises:
        UserError: If matplotlib is not installed.
    """
    heights = [1.2 + 0.45 * len(routing), 0.8 + 0.35 * len(accuracy)]
    figure, (left, right) = pyplot_figure(3.5 + 0.8 * len(columns), sum(heights), heights)
    counts = [list(row) for row in routing.values()]
    shares = [[value / max(sum(row), 1) for value in row] for row in counts]
    left.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for y, row in enumerate(counts):
        for x, value in enumerate(row):
            if value:
                ink = "white" if shares[y][x] > 0.6 else "black"
                left.text(x, y, str(value), ha="center", va="center", color=ink)
    left.set_xticks(range(len(columns)), columns, rotation=45, ha="right")
    left.set_yticks(range(len(routing)), list(routing))
    left.set_title("rows of each task (down) by adapter")
    methods = list(accuracy)
    means = [100 * accuracy[method]["mean"] for method in methods]
    right.barh(methods[::-1], means[::-1], color="tab:blue")
    for y, mean in enumerate(means[::-1]):
        right.text(mean, y, f" {mean:.1f}", va="center")
    right.set_xlabel("mean accuracy, %")
    figure.savefig(path, dpi=120)
