"""Matplotlib without a display, or one sentence on how to get it."""

from importlib import import_module
from typing import Any

from moe_adapt.errors import UserError

__all__ = ["pyplot_figure"]


def pyplot_figure(width: float, height: float, panels: list[float]) -> tuple[Any, Any]:
    """Return a figure of `width` x `height` inches and its panels, one above the other.

    Args:
        width: Width in inches.
        height: Height in inches.
        panels: Relative heights of the panels.

    Raises:
        UserError: If matplotlib is not installed.
    """
    try:
        figure_class: Any = import_module("matplotlib.figure").Figure
    except ModuleNotFoundError as error:
        raise UserError("drawing needs matplotlib: pip install 'moe-adapt[plots]'.") from error
    figure = figure_class(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(len(panels), 1, height_ratios=panels, squeeze=False)[:, 0]
