"""A trace's metrics and pictures as one HTML file that needs no other."""

import base64
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any

from moe_adapt.evaluation.trace_metrics import SCALARS

__all__ = ["html_report"]

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid #8884; }
th:first-child, td:first-child { text-align: left; overflow-wrap: anywhere; }
img { max-width: 100%; background: white; }
.wide { overflow-x: auto; }
"""

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
        metrics: What `moe_adapt.evaluation.trace_metrics.trace_metrics` returns.
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
    parts = [
        "<!doctype html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>',
        f"<style>{_STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
        _table(["", ""], origin.items()),
        "<h2>Mean over sites</h2>",
        _table(["metric", "mean"], [(_TITLES[name], metrics["mean"][name]) for name in SCALARS]),
        *(f"<h2>{escape(heading)}</h2>{_image(path, heading)}" for heading, path in pictures.items()),
        "<h2>Sites</h2>",
        _table(heads, sites),
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def _image(path: Path, alt: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return f'<img alt="{escape(alt)}" src="data:image/png;base64,{data}">'


def _table(heads: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    body = "\n".join(f"<tr>{''.join(f'<td>{_cell(value)}</td>' for value in row)}</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{head}</tr>\n{body}\n</table></div>'


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else escape(str(value))
