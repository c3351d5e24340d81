"""Parts of a report that is one HTML file and needs no other."""

import base64
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any

__all__ = ["image", "page", "table"]

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid #8884; }
th:first-child, td:first-child { text-align: left; white-space: nowrap; }
img { max-width: 100%; background: white; }
.wide { overflow-x: auto; }
"""


def page(title: str, parts: Iterable[str]) -> str:
    """Return a whole page.

    Args:
        title: Its heading.
        parts: HTML below it.
    """
    head = f'<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
    return "\n".join(
        [
            "<!doctype html>",
            head,
            f"<style>{_STYLE}</style></head><body>",
            f"<h1>{escape(title)}</h1>",
            *parts,
            "</body></html>\n",
        ]
    )


def image(path: Path, alt: str) -> str:
    """Return a PNG file as part of the page."""
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return f'<img alt="{escape(alt)}" src="data:image/png;base64,{data}">'


def table(heads: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """Return a table; numbers with a fraction have three digits, None is a dash."""
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    body = "\n".join(f"<tr>{''.join(f'<td>{_cell(value)}</td>' for value in row)}</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{head}</tr>\n{body}\n</table></div>'


def _cell(value: Any) -> str:
    if value is None or value != value:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else escape(str(value))
