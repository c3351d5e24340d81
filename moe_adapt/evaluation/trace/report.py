"""A trace's metrics and pictures as one HTML file that needs no other."""

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from moe_adapt.evaluation.html import facts, image, page, table, verdict
from moe_adapt.evaluation.trace.metrics import SCALARS
from moe_adapt.evaluation.words import routing_sentences

__all__ = ["html_report"]

_TITLES = {
    "mean_k": "experts per token",
    "entropy": "entropy (1 = uniform)",
    "load_max": "largest load",
    "max_violation": "MaxVio",
    "dead_experts": "dead experts",
    "group_js": "JS between groups",
}


def html_report(metrics: Mapping[str, Any], pictures: Mapping[str, Path], title: str) -> str:
    """Return the report.

    Args:
        metrics: What `moe_adapt.evaluation.trace.metrics.trace_metrics` returns.
        pictures: PNG files by heading; they are put into the text.
        title: Heading of the report.
    """
    origin = {"samples": metrics["samples"], "tokens": metrics["tokens"], **metrics["meta"]}
    windows = list(next(iter(metrics["sites"].values()))["srp"]) if metrics["sites"] else []
    heads = ["site", *(_TITLES[name] for name in SCALARS), *(f"SRP({m})" for m in windows)]
    sites = [
        [site, *(one[name] for name in SCALARS), *(one["srp"][m] for m in windows)]
        for site, one in metrics["sites"].items()
    ]
    said = "; ".join(routing_sentences(metrics["mean"]))
    return page(
        title,
        [
            *([verdict(f"{said[0].upper()}{said[1:]}.")] if said else []),
            "<h2>Mean over sites</h2>",
            table(["metric", "mean"], [(_TITLES[name], metrics["mean"][name]) for name in SCALARS]),
            *(f"<h2>{escape(heading)}</h2>{image(path, heading)}" for heading, path in pictures.items()),
            "<h2>Sites</h2>",
            table(heads, sites),
            "<h2>Origin</h2>",
            facts(origin),
        ],
    )
