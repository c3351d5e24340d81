"""Parts of a report that is one HTML file and needs no other: one style for all reports.

Readable on a telephone and in the dark; wide tables scroll under a first column that stays. Pictures are SVG
in the text's own colour (`moe_adapt.evaluation.svg`), or PNG files that the style inverts in the dark.
"""

import base64
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Literal

__all__ = ["facts", "image", "page", "table", "verdict"]

#: An option of the command line.
OPTION = re.compile(r"--\w[\w.]*\w")

STYLE = """
:root { color-scheme: light dark; --page: #fff; --text: #1c2127; --faint: #65707c; --line: #d8dde3;
  --band: #f4f6f8; --accent: #2563a8; --warm: #b4560a; }
@media (prefers-color-scheme: dark) { :root { --page: #15181c; --text: #e4e8ec; --faint: #98a2ad;
  --line: #343b43; --band: #1d2228; --accent: #7db2ef; --warm: #f0a35e; }
  img.plot { filter: invert(1) hue-rotate(180deg); mix-blend-mode: screen; } }
* { box-sizing: border-box; }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 68rem; margin: 0 auto; padding: 1.5rem 1rem 4rem;
  background: var(--page); color: var(--text); overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 1rem; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
a { color: var(--accent); }
.verdict { font-size: 1.1rem; border-left: 4px solid var(--accent); background: var(--band);
  padding: .7rem 1rem; margin: 0 0 1.4rem; }
.verdict code { white-space: nowrap; }
.note { color: var(--faint); font-size: .9rem; }
.wide { overflow-x: auto; margin: .6rem 0; -webkit-overflow-scrolling: touch; }
table { border-collapse: separate; border-spacing: 0; font-variant-numeric: tabular-nums;
  font-size: 15px; line-height: 22px; }
th, td { padding: 5px 12px; text-align: right; border-bottom: 1px solid var(--line);
  overflow-wrap: normal; }
th { font-weight: 600; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: var(--page);
  min-width: 7rem; max-width: 16rem; overflow-wrap: break-word; }
.texts th:first-child, .texts td:first-child { min-width: 11rem; }
.facts th:first-child, .facts td:first-child { color: var(--faint); min-width: 8.5rem; }
td { white-space: nowrap; }
td:first-child, .facts td, .texts td { white-space: normal; }
.facts td, .texts td, .texts th { text-align: left; }
.facts td { overflow-wrap: anywhere; }
td.best { font-weight: 700; }
pre, code { font: .87rem/1.45 ui-monospace, monospace; }
pre { overflow-x: auto; background: var(--band); padding: .7rem 1rem; }
img { max-width: 100%; height: auto; }
svg { max-width: 100%; height: auto; display: block; }
svg text { fill: var(--text); font: 11px system-ui, sans-serif; }
svg .axis { stroke: var(--line); }
svg .mark { stroke: var(--warm); stroke-dasharray: 4 3; }
details { margin: .6rem 0; }
"""


def page(title: str, parts: Iterable[str]) -> str:
    """Return a whole page.

    Args:
        title: Its heading.
        parts: HTML below it.
    """
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>",
            f"<style>{STYLE}</style></head><body>",
            f"<h1>{escape(title)}</h1>",
            *parts,
            "</body></html>\n",
        ]
    )


def verdict(sentence: str) -> str:
    """Return the sentence that a report begins with; options of the command line stay in one piece."""
    text = OPTION.sub(r"<code>\g<0></code>", escape(sentence[:1].upper() + sentence[1:]))
    return f'<p class="verdict">{text}</p>'


def image(path: Path, alt: str) -> str:
    """Return a PNG file as part of the page."""
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return f'<img class="plot" alt="{escape(alt)}" src="data:image/png;base64,{data}">'


def facts(pairs: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> str:
    """Return names and values as a table of two columns."""
    items = pairs.items() if isinstance(pairs, Mapping) else pairs
    rows = "\n".join(f"<tr><td>{escape(str(k))}</td><td>{_cell(v)}</td></tr>" for k, v in items)
    return f'<div class="wide"><table class="facts">{rows}</table></div>'


def table(
    heads: Iterable[str],
    rows: Iterable[Iterable[Any]],
    best: Mapping[int, Literal["max", "min"]] | None = None,
    texts: bool = False,
    bold: Collection[tuple[int, int]] = (),
    best_of_rows: Mapping[int, str] | None = None,
    digits: int = 3,
) -> str:
    """Return a table; None is a dash.

    Args:
        heads: Headings of the columns.
        rows: The rows.
        best: Columns whose best value is bold, by number: the highest (``max``) or lowest (``min``).
        texts: Whether the cells are texts, which are set to the left.
        bold: Cells that are bold as well, as numbers of row and column.
        best_of_rows: As `best` for rows, whose cells after the first are compared.
        digits: Digits of numbers with a fraction.
    """
    lines = [list(row) for row in rows]
    strong = {
        (row, column)
        for column, which in (best or {}).items()
        for row in _best([line[column] for line in lines], which)
    }
    strong.update(bold)
    for row, which in (best_of_rows or {}).items():
        strong |= {(row, column) for column in _best(lines[row], which) if column}
    head = "".join(f"<th>{escape(str(name))}</th>" for name in heads)
    body = "\n".join(
        "<tr>"
        + "".join(
            f"<td{' class=best' if (number, column) in strong else ''}>{_cell(value, digits)}</td>"
            for column, value in enumerate(line)
        )
        + "</tr>"
        for number, line in enumerate(lines)
    )
    kind = ' class="texts"' if texts else ""
    return f'<div class="wide"><table{kind}><tr>{head}</tr>\n{body}\n</table></div>'


def _best(values: Sequence[Any], which: str) -> list[int]:
    known = {n: v for n, v in enumerate(values) if isinstance(v, (int, float)) and v == v}
    if len(set(known.values())) < 2:
        return []
    top = max(known.values()) if which == "max" else min(known.values())
    return [number for number, value in known.items() if value == top]


def _cell(value: Any, digits: int = 3) -> str:
    if value is None or value != value:
        return "-"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10_000:
        return f"{value:,}"
    return f"{value:.{digits}f}" if isinstance(value, float) else escape(str(value))
