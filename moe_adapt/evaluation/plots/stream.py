"""Pictures of a run over a stream: accuracy matrix, accuracy against tasks, forgetting, expert load."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from moe_adapt.evaluation.accuracy_matrix import AccuracyMatrix
from moe_adapt.evaluation.continual import accuracy_seen, forgetting_by_task
from moe_adapt.evaluation.plots._matplotlib import pyplot_figure

__all__ = ["draw_curve", "draw_forgetting", "draw_load", "draw_matrix", "draw_pareto"]

#: Up to so many tasks every cell of the matrix has its number written in it.
ANNOTATED = 15


def draw_matrix(matrix: AccuracyMatrix, names: list[str], path: str | Path) -> None:
    """Draw accuracy on each task (columns) after each task that was followed by a test (rows).

    Args:
        matrix: The accuracies.
        names: Names of the tasks.
        path: The picture.

    Raises:
        UserError: If matplotlib is not installed.
    """
    tasks = len(matrix)
    found = np.flatnonzero((matrix.correct >= 0).any(axis=1))
    tested = found if len(found) else np.arange(tasks)
    rates = matrix.rates()[tested]
    width, height = (min(12.0, max(4.5, 0.5 * count)) for count in (tasks, len(tested)))
    figure, (axes,) = pyplot_figure(width + 1.5, height, [1.0])
    image = axes.imshow(rates, vmin=0.0, vmax=1.0, cmap="viridis", interpolation="nearest", aspect="auto")
    axes.set_xlabel("tested on task")
    axes.set_ylabel("after task")
    shown = np.arange(0, len(tested), -(-len(tested) // ANNOTATED))
    axes.set_yticks(shown, [str(step) for step in tested[shown]])
    if tasks <= ANNOTATED:
        axes.set_xticks(range(tasks), names, rotation=45, ha="right", fontsize=7)
        axes.set_yticks(range(len(tested)), [names[step] for step in tested], fontsize=7)
        for i, j in zip(*np.nonzero(~np.isnan(rates)), strict=True):
            colour = "black" if rates[i, j] > 0.6 else "white"
            axes.text(j, i, f"{100 * rates[i, j]:.0f}", ha="center", va="center", color=colour, fontsize=8)
    figure.colorbar(image, ax=axes, label="accuracy")
    figure.savefig(path, dpi=110)


def draw_curve(curves: Mapping[str, AccuracyMatrix], path: str | Path) -> None:
    """Draw accuracy over everything seen against the number of tasks.

    Args:
        curves: Accuracies by name, the run itself first. One that was tested once is a horizontal line: a
            bound.
        path: The picture.

    Raises:
        UserError: If matplotlib is not installed.
    """
    figure, (axes,) = pyplot_figure(8.0, 4.5, [1.0])
    for number, (name, matrix) in enumerate(curves.items()):
        seen = accuracy_seen(matrix)
        steps = matrix.measured()
        colour = f"C{number % 10}"
        if len(steps) == 1 and len(matrix) > 1:
            axes.axhline(seen[steps[0]], color=colour, linestyle="--", label=f"{name} (tested once)")
        else:
            marker = "o" if len(steps) <= 40 else None
            width = 2.2 if number == 0 else 1.2
            axes.plot(steps + 1, seen[steps], color=colour, linewidth=width, marker=marker, ms=3, label=name)
    axes.set_xlabel("tasks learned")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_ylabel("accuracy over all classes seen")
    axes.set_ylim(0.0, 1.02)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def draw_forgetting(matrix: AccuracyMatrix, names: list[str], path: str | Path) -> None:
    """Draw, for every task but the last, how much of its first and of its best accuracy is gone.

    Args:
        matrix: The accuracies.
        names: Names of the tasks.
        path: The picture.

    Raises:
        UserError: If matplotlib is not installed.
    """
    figure, (axes,) = pyplot_figure(8.0, 3.6, [1.0])
    place = np.arange(len(matrix) - 1)
    axes.bar(place - 0.2, forgetting_by_task(matrix, "initial"), 0.4, label="since it was learned (= -BWT)")
    axes.bar(place + 0.2, forgetting_by_task(matrix, "max"), 0.4, label="since its best")
    axes.axhline(0.0, color="black", linewidth=0.8)
    if len(matrix) <= 2 * ANNOTATED:
        axes.set_xticks(place, names[:-1], rotation=45, ha="right", fontsize=7)
    axes.set_xlabel("task")
    axes.set_ylabel("accuracy lost")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def draw_load(load: Mapping[str, list[float]], path: str | Path) -> None:
    """Draw the share of picks of each expert at each site.

    Args:
        load: Shares [E] by site.
        path: The picture.

    Raises:
        UserError: If matplotlib is not installed.
    """
    experts = max(len(shares) for shares in load.values())
    figure, (axes,) = pyplot_figure(max(7.0, 0.4 * experts + 5.0), max(2.5, 0.2 * len(load) + 1.5), [1.0])
    padded: Any = [[*shares, *[float("nan")] * (experts - len(shares))] for shares in load.values()]
    image = axes.imshow(padded, aspect="auto", vmin=0.0, cmap="viridis", interpolation="nearest")
    axes.set_yticks(range(len(load)), [".".join(site.split(".")[-5:]) for site in load], fontsize=6)
    axes.set_xlabel("expert")
    figure.colorbar(image, ax=axes, label="share of picks")
    figure.savefig(path, dpi=110)


def draw_pareto(points: Mapping[str, tuple[float, float]], path: str | Path) -> None:
    """Draw what each run learned against what it kept.

    Args:
        points: Plasticity (mean accuracy right after each task) and backward transfer of each run, by name.
        path: The picture.

    Raises:
        UserError: If matplotlib is not installed.
    """
    figure, (axes,) = pyplot_figure(7.0, 5.0, [1.0])
    for name, (plasticity, kept) in points.items():
        axes.plot(plasticity, kept, "o")
        axes.annotate(name, (plasticity, kept), textcoords="offset points", xytext=(4, 3), fontsize=8)
    axes.axhline(0.0, color="grey", linewidth=0.6)
    axes.set_xlabel("plasticity: accuracy right after each task")
    axes.set_ylabel("backward transfer: change until the end")
    figure.savefig(path, dpi=110)
