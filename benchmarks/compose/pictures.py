"""Pictures of composed adapters: who goes where, accuracy against the number of adapters, removal."""

import statistics
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "compose"  # equal files from equal numbers
from matplotlib import pyplot  # noqa: E402

__all__ = ["draw"]

_COLOURS = {"oracle": "#6b7280", "LDA, 320 texts": "#3f51b5", "merge cat": "#c2570c", "base": "#2e7d32"}


def draw(cells: list[dict[str, Any]], folder: Path) -> None:
    """Write ``compose.svg`` with three panels, of the form `codes`."""
    cells = [cell for cell in cells if cell["form"] == "codes"]
    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(13, 4), layout="constrained")
    _routes(cells, left)
    _numbers(cells, middle)
    _removal(cells, right)
    figure.savefig(folder / "compose.svg", metadata={"Date": None})
    pyplot.close(figure)


def _routes(cells: list[dict[str, Any]], axes: Any) -> None:
    names = list(cells[0]["routes"])
    shares = [
        [
            100 * sum(cell["routes"][task][to] for cell in cells)
            / sum(sum(cell["routes"][task].values()) for cell in cells)
            for to in names
        ]
        for task in names
    ]  # fmt: skip
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    for row, values in enumerate(shares):
        for column, value in enumerate(values):
            if value >= 0.5:
                shade = "white" if value > 50 else "black"
                axes.text(column, row, f"{value:.0f}", ha="center", va="center", color=shade, fontsize=8)
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="adapter that answers", ylabel="task of the row", title="Who goes where, % of rows")


def _numbers(cells: list[dict[str, Any]], axes: Any) -> None:
    cells = [cell for cell in cells if "subsets" in cell]
    for name, colour in _COLOURS.items():
        curve = {
            int(number): 100 * statistics.mean(cell["subsets"][number][name] for cell in cells)
            for number in cells[0]["subsets"]
        }
        curve[8] = 100 * statistics.mean(cell["accuracy"][name]["mean"] for cell in cells)
        axes.plot(list(curve), list(curve.values()), marker="o", color=colour, label=name)
    axes.set(xlabel="adapters (and tasks)", ylabel="accuracy, %", ylim=(0, 119), title="More adapters")
    axes.set_xticks([2, 4, 6, 8])
    axes.legend(frameon=False, fontsize=8, ncols=2, loc="upper center")


def _removal(cells: list[dict[str, Any]], axes: Any) -> None:
    names = list(cells[0]["removal"])
    for place, (key, label, colour) in enumerate(
        (
            ("before", "with its adapter", "#3f51b5"),
            ("own rows", "adapter removed", "#c62828"),
            ("base", "base", "#2e7d32"),
        )
    ):
        values = [100 * statistics.mean(cell["removal"][name][key] for cell in cells) for name in names]
        axes.bar([n + 0.27 * (place - 1) for n in range(len(names))], values, 0.27, label=label, color=colour)
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right")
    axes.set(ylabel="accuracy on its own rows, %", ylim=(0, 119), title="Removing one adapter")
    axes.legend(frameon=False, fontsize=8, ncols=3, loc="upper center")
