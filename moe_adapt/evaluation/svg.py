"""Pictures as SVG text, drawn in the page's own colours so that they follow a dark page."""

import math
from collections.abc import Mapping, Sequence
from html import escape

__all__ = ["heat_map", "line_chart", "strip_chart"]

#: Colours of curves, told apart on light and dark pages and by most colour-blind readers.
COLOURS = ("#4c8fd6", "#e08a2e", "#3fa277", "#c265b5", "#b8a032", "#8c8c8c")

Point = tuple[float, float]


def line_chart(
    series: Mapping[str, Sequence[Point]],
    x_label: str,
    y_label: str,
    marks: Sequence[float] = (),
    level: float | None = None,
) -> str:
    """Return curves over one axis, with a legend.

    Args:
        series: Points (x, y) of each curve by name, in the order of x; curves without points are left out.
        x_label: What x is.
        y_label: What y is.
        marks: Values of x with a dashed line from top to bottom; those outside the curves are left out.
        level: Value of y with a dashed line from left to right.
    """
    known = {name: list(points) for name, points in series.items() if points}
    if not known:
        return ""
    width, height, left, right, top, bottom = 420, 220, 52, 18, 12, 40
    xs = [x for points in known.values() for x, _ in points]
    ys = [y for points in known.values() for _, y in points]
    x_low, x_high = min(xs), max(max(xs), min(xs) + 1e-9)
    y_low, y_high = min(ys), max(ys)
    if level is not None:
        y_low, y_high = min(y_low, level), max(y_high, level)
    margin = (y_high - y_low) * 0.06 or abs(y_high) * 0.1 or 1.0
    within = y_low >= 0 and y_high <= 1  # shares stay between 0 and 1
    y_low, y_high = y_low - margin, y_high + margin
    if within:
        y_low, y_high = max(y_low, 0.0), min(y_high, 1.0)

    def place(x: float, y: float) -> str:
        across = left + (x - x_low) / (x_high - x_low) * (width - left - right)
        down = height - bottom - (y - y_low) / (y_high - y_low) * (height - top - bottom)
        return f"{across:.1f},{down:.1f}"

    parts = []
    for y in _ticks(y_low, y_high):
        across, down = place(x_low, y).split(",")
        parts.append(f'<line class="axis" x1="{across}" y1="{down}" x2="{width - right}" y2="{down}"/>')
        parts.append(f'<text x="{left - 6}" y="{float(down) + 4:.1f}" text-anchor="end">{y:.6g}</text>')
    for x in _ticks(x_low, x_high, whole=all(float(value).is_integer() for value in xs)):
        across = place(x, y_low).split(",")[0]
        parts.append(f'<text x="{across}" y="{height - bottom + 16}" text-anchor="middle">{x:.10g}</text>')
    for mark in marks:
        if x_low <= mark <= x_high:
            across = place(mark, y_low).split(",")[0]
            parts.append(
                f'<line class="mark" x1="{across}" y1="{top}" x2="{across}" y2="{height - bottom}"/>'
            )
    if level is not None:
        down = place(x_low, level).split(",")[1]
        parts.append(f'<line class="mark" x1="{left}" y1="{down}" x2="{width - right}" y2="{down}"/>')
    for colour, points in zip(_cycle(len(known)), known.values(), strict=True):
        path = " ".join(place(x, y) for x, y in points)
        if len(points) == 1:
            across, down = path.split(",")
            parts.append(f'<circle cx="{across}" cy="{down}" r="3" fill="{colour}"/>')
        else:
            parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
    parts.append(f'<text x="{left}" y="{height - 6}">{escape(x_label)}; {escape(y_label)}</text>')
    legend = " ".join(
        f'<span style="white-space:nowrap"><b style="color:{colour}">&#9644;</b> {escape(name)}</span>'
        for colour, name in zip(_cycle(len(known)), known, strict=True)
    )
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img" aria-label="{escape(y_label)}">'
        f"{''.join(parts)}"
        f'</svg><p class="note">{legend}</p>'
    )


def _ticks(low: float, high: float, whole: bool = False) -> list[float]:
    """Return a few round numbers between two ends, whole ones if asked; the lower end if there are none."""
    rough = (high - low) / 6
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough * (1 - 1e-9))
    step = max(step, 1.0) if whole else step
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)] or [low]


def strip_chart(values: Mapping[str, Sequence[float]], label: str) -> str:
    """Return a row for each name with a dot for each value and a stroke at their mean.

    Args:
        values: Values by name; names without values are left out.
        label: What the values are.
    """
    known = {name: list(own) for name, own in values.items() if own}
    if not known:
        return ""
    left = min(170, 16 + 7 * max(map(len, known)))
    width, row, right = 420, 26, 14
    numbers = [value for own in known.values() for value in own]
    low, high = min(numbers), max(numbers)
    margin = (high - low) * 0.08 or abs(high) * 0.1 or 1.0
    low, high = low - margin, high + margin

    def across(value: float) -> float:
        return left + (value - low) / (high - low) * (width - left - right)

    foot = row * len(known)
    parts = []
    for value in _ticks(low, high):
        x = across(value)
        parts.append(f'<line class="axis" x1="{x:.1f}" y1="0" x2="{x:.1f}" y2="{foot}"/>')
        parts.append(f'<text x="{x:.1f}" y="{foot + 14}" text-anchor="middle">{value:.6g}</text>')
    for place, (name, own) in enumerate(known.items()):
        middle = place * row + row / 2
        mean = across(sum(own) / len(own))
        parts.append(f'<text x="{left - 8}" y="{middle + 4}" text-anchor="end">{_short(name, left)}</text>')
        parts += [
            f'<circle cx="{across(value):.1f}" cy="{middle}" r="4" fill="{COLOURS[0]}" fill-opacity="0.6">'
            f"<title>{escape(name)}: {value:.4f}</title></circle>"
            for value in own
        ]
        parts.append(
            f'<line x1="{mean:.1f}" y1="{middle - 9}" x2="{mean:.1f}" y2="{middle + 9}" '
            f'stroke="{COLOURS[1]}" stroke-width="2"/>'
        )
    return (
        f'<svg viewBox="0 0 {width} {foot + 20}" width="{width}" role="img" aria-label="{escape(label)}">'
        f'{"".join(parts)}</svg><p class="note">{escape(label[0].upper() + label[1:])}.</p>'
    )


def _cycle(count: int) -> list[str]:
    return [COLOURS[number % len(COLOURS)] for number in range(count)]


def heat_map(
    values: Sequence[Sequence[float]],
    rows: Sequence[str],
    columns: Sequence[str],
    numbers: Sequence[Sequence[str]] | None = None,
) -> str:
    """Return a matrix as coloured cells: the stronger, the larger.

    Args:
        values: Numbers from 0 to 1, [rows][columns].
        rows: Names of the rows.
        columns: Names of the columns.
        numbers: What is written into the cells; None leaves them empty.
    """
    cell = 26 if numbers is not None else max(6, min(26, 560 // max(1, len(columns))))
    label = min(200, 8 + 7 * max((len(name) for name in rows), default=0))
    foot = min(160, 8 + 7 * max((len(name) for name in columns), default=0))
    width, height = label + cell * len(columns) + 4, cell * len(rows) + foot
    parts = []
    for down, (name, line) in enumerate(zip(rows, values, strict=True)):
        middle = down * cell + cell / 2 + 4
        parts.append(f'<text x="{label - 5}" y="{middle:.1f}" text-anchor="end">{_short(name, label)}</text>')
        for across, value in enumerate(line):
            x, y = label + across * cell, down * cell
            shade = max(0.04, min(1.0, value))
            tip = f"<title>{escape(name)}, {escape(columns[across])}: {value:.3f}</title>"
            parts.append(
                f'<rect x="{x}" y="{y}" width="{cell - 1}" height="{cell - 1}" fill="{COLOURS[0]}" '
                f'fill-opacity="{shade:.3f}">{tip}</rect>'
            )
            if numbers is not None and numbers[down][across]:
                said = escape(numbers[down][across])
                parts.append(f'<text x="{x + cell / 2}" y="{middle:.1f}" text-anchor="middle">{said}</text>')
    for across, name in enumerate(columns):
        centre, y = label + across * cell + cell / 2 + 3, cell * len(rows) + 8
        turned = f'transform="rotate(-90 {centre} {y})"'
        parts.append(f'<text x="{centre}" y="{y}" text-anchor="end" {turned}>{_short(name, foot)}</text>')
    return (
        f'<div class="wide"><svg viewBox="0 0 {width} {height}" width="{width}" role="img" '
        f'style="max-width:none">{"".join(parts)}</svg></div>'
    )


def _short(name: str, space: int) -> str:
    most = max(3, (space - 8) // 7)
    return escape(name if len(name) <= most else name[: most - 1] + "…")
