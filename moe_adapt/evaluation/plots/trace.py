"""Pictures of a trace: load, experts per token, groups and experts, one sample."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from moe_adapt.evaluation.plots._matplotlib import pyplot_figure
from moe_adapt.evaluation.trace.record import RoutingTrace

__all__ = ["draw_experts_per_token", "draw_groups", "draw_load", "draw_sample", "short_site"]

_DPI = 110
_MOST_INCHES = 45.0


def short_site(site: str, parts: int = 5) -> str:
    """Return the last parts of a site's path.

    >>> short_site("base_model.model.encoder.layer.0.attention.query")
    'encoder.layer.0.attention.query'
    """
    return ".".join(site.split(".")[-parts:])


def draw_load(metrics: Mapping[str, Any], path: str | Path) -> None:
    """Draw the share of picks of each expert at each site.

    Args:
        metrics: What `moe_adapt.evaluation.trace.metrics.trace_metrics` returns.
        path: The picture, of any type that matplotlib writes.

    Raises:
        UserError: If matplotlib is not installed.
    """
    rows = {site: one["load"] for site, one in metrics["sites"].items()}
    _heat_map(rows, path, "share of picks per expert", "expert")


def draw_experts_per_token(metrics: Mapping[str, Any], path: str | Path) -> None:
    """Draw the share of tokens that use 0, 1, ..., E experts at each site; arguments as `draw_load`."""
    rows = {site: one["k_share"] for site, one in metrics["sites"].items()}
    _heat_map(rows, path, "share of tokens by number of experts", "experts per token")


def draw_groups(metrics: Mapping[str, Any], path: str | Path, most: int = 4) -> None:
    """Draw the share of picks of each expert in each group, at the sites where groups differ most.

    Args:
        metrics: What `moe_adapt.evaluation.trace.metrics.trace_metrics` returns, of a trace with groups.
        path: The picture.
        most: How many sites.

    Raises:
        UserError: If matplotlib is not installed.
    """
    names = metrics["group_names"]
    by_divergence = sorted(
        metrics["sites"].items(), key=lambda item: item[1]["group_js"] or 0.0, reverse=True
    )
    chosen = by_divergence[:most]
    height = max(1.2, 0.22 * len(names)) + 0.8
    figure, panels = pyplot_figure(8.0, min(height * len(chosen), _MOST_INCHES), [1.0] * len(chosen))
    for panel, (site, one) in zip(panels, chosen, strict=True):
        image = panel.imshow(
            one["group_load"], aspect="auto", vmin=0.0, cmap="viridis", interpolation="nearest"
        )
        panel.set_yticks(range(len(names)), names, fontsize=7)
        panel.set_xticks(range(one["experts"]))
        divergence = "" if one["group_js"] is None else f"   mean JS {one['group_js']:.2g} nats"
        panel.set_title(short_site(site) + divergence, fontsize=8)
        figure.colorbar(image, ax=panel)
    panels[-1].set_xlabel("expert")
    figure.savefig(path, dpi=_DPI)


def draw_sample(trace: RoutingTrace, path: str | Path, sample: int | None = None, most: int = 96) -> None:
    """Draw which expert comes first at each site for each token of one sample; blank is a null expert.

    Args:
        trace: The trace; the sites with the most tokens are shown.
        path: The picture.
        sample: Number of the sample; None for the first.
        most: How many tokens.

    Raises:
        UserError: If matplotlib is not installed.
    """
    full = max(range(len(trace.tables)), key=lambda number: len(trace.tables[number].sample))
    numbers = trace.tables[full].sample
    sample = int(numbers[0]) if sample is None else sample
    own = torch.nonzero(numbers == sample).flatten()[:most]
    first = {name: site.first[own].float() for name, site in trace.sites.items() if site.table == full}
    rows = {name: row.masked_fill(row < 0, float("nan")).tolist() for name, row in first.items()}
    experts = max(trace.sites[name].num_experts for name in rows)
    fitting = [("tab10", 10), ("tab20", 20), ("turbo", experts)]
    colours, span = next(pair for pair in fitting if experts <= pair[1])
    height = max(2.0, 0.16 * len(rows)) + 1.0
    figure, (panel,) = pyplot_figure(max(8.0, 0.11 * len(own) + 4.0), min(height, _MOST_INCHES), [1.0])
    image = panel.imshow(
        list(rows.values()),
        aspect="auto",
        cmap=colours,
        vmin=-0.5,
        vmax=span - 0.5,
        interpolation="nearest",
    )
    panel.set_yticks(range(len(rows)), [short_site(site) for site in rows], fontsize=6)
    panel.set_xlabel("token")
    panel.set_title(f"first expert of each token, sample {sample}")
    bar = figure.colorbar(image, ax=panel, ticks=range(experts))
    bar.ax.set_ylim(-0.5, experts - 0.5)
    figure.savefig(path, dpi=_DPI)


def _heat_map(rows: Mapping[str, list[float]], path: str | Path, title: str, label: str) -> None:
    columns = max(len(row) for row in rows.values())
    padded = [[*row, *[float("nan")] * (columns - len(row))] for row in rows.values()]
    height = max(2.0, 0.16 * len(rows)) + 1.0
    figure, (panel,) = pyplot_figure(max(8.0, 0.3 * columns + 5.0), min(height, _MOST_INCHES), [1.0])
    image = panel.imshow(padded, aspect="auto", vmin=0.0, cmap="viridis", interpolation="nearest")
    panel.set_yticks(range(len(rows)), [short_site(site) for site in rows], fontsize=6)
    panel.set_xticks(range(columns))
    panel.set_xlabel(label)
    panel.set_title(title)
    figure.colorbar(image, ax=panel)
    figure.savefig(path, dpi=_DPI)
