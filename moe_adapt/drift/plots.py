"""Prequential curves with drift marks, and which expert was asked when."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from moe_adapt.evaluation.plots._matplotlib import pyplot_figure

__all__ = ["draw_curves", "draw_expert_load"]

_DPI = 110
_BESIDE: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}


def draw_curves(
    curves: Mapping[str, Mapping[str, Sequence[Any]]],
    path: str | Path,
    title: str,
    drifts: Sequence[int] = (),
    bayes: float | None = None,
) -> None:
    """Draw accuracy over the window and over all rows so far, a line per method.

    Args:
        curves: Method -> what `moe_adapt.drift.metrics.windowed` returns.
        path: The picture.
        title: Its heading.
        drifts: Rows to mark.
        bayes: Accuracy that no method can exceed in the mean, if known.

    Raises:
        UserError: If matplotlib is not installed.
    """
    figure, panels = pyplot_figure(9.0, 6.0, [3.0, 2.0])
    for panel, key, label in zip(panels, ("accuracy", "cumulative"), ("window", "so far"), strict=True):
        panel.set_prop_cycle(color=_colours(len(curves)))
        for method, curve in curves.items():
            panel.plot(curve["rows"], curve[key], label=method, linewidth=1.2)
        for drift in drifts:
            panel.axvline(drift, color="0.6", linestyle="--", linewidth=0.8)
        if bayes is not None:
            panel.axhline(bayes, color="0.3", linestyle=":", linewidth=1.0)
        panel.set_ylabel(f"accuracy, {label}")
    panels[0].set_title(title)
    panels[0].legend(fontsize=7, **_BESIDE)
    panels[1].set_xlabel("rows")
    figure.savefig(path, dpi=_DPI)


def draw_expert_load(
    load: Mapping[str, Sequence[Any]], path: str | Path, title: str, drifts: Sequence[int] = ()
) -> None:
    """Draw the share of rows for which each expert was the router's first choice, over time.

    Args:
        load: Lists under rows and share; a share per expert, shorter before experts were added.
        path: The picture.
        title: Its heading.
        drifts: Rows to mark.

    Raises:
        UserError: If matplotlib is not installed.
    """
    width = max(len(share) for share in load["share"])
    columns = [[*share, *[0.0] * (width - len(share))] for share in load["share"]]
    figure, (panel,) = pyplot_figure(9.0, 2.8, [1.0])
    rows, columns = [0, *load["rows"]], [columns[0], *columns]  # a share counts for the rows up to its own
    panel.set_prop_cycle(color=_colours(width))
    panel.stackplot(rows, *zip(*columns, strict=True), labels=[str(e) for e in range(width)], step="pre")
    for drift in drifts:
        panel.axvline(drift, color="0.2", linestyle="--", linewidth=0.8)
    panel.set(title=title, xlabel="rows", ylabel="share of rows", xlim=(0, rows[-1]), ylim=(0, 1))
    panel.legend(fontsize=6, ncols=2, **_BESIDE)
    figure.savefig(path, dpi=_DPI)


def _colours(count: int) -> list[Any]:
    """Return that many colours, all different up to twenty."""
    maps = import_module("matplotlib").colormaps
    if count <= 10:
        return list(maps["tab10"].colors[:count])
    shades = maps["tab20"].colors
    return [*shades[::2], *shades[1::2]]
