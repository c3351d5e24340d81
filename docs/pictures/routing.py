"""The router pipeline of one token at one layer, from input to output."""

from canvas import Canvas, Palette

__all__ = ["routing"]

LOGITS = (1.4, -0.3, 0.9, -1.2)
GATES = (0.62, 0.0, 0.38, 0.0)


def routing(palette: Palette) -> Canvas:
    """Return the picture."""
    canvas = Canvas(860, 330, palette, "A token's way through scorer, modifiers, selector and experts")
    canvas.box(10, 120, 90, 54, ["token x", "[d]"])
    stages = [
        (150, "scorer", "logits [E]"),
        (310, "modifiers", "shift, noise, bias"),
        (470, "selector", "who is kept"),
    ]
    for x, name, below in stages:
        canvas.box(x, 28, 120, 54, [name, below], colour="main")
    canvas.text(370, 12, "router, fp32", "soft", 12)
    canvas.arrow((55, 120), (55, 55), (148, 55))
    canvas.arrow((270, 55), (308, 55))
    canvas.arrow((430, 55), (468, 55))
    canvas.arrow((590, 55), (628, 55))
    bars(canvas, 165, LOGITS, "main", 14)
    bars(canvas, 640, GATES, "second", 44)
    canvas.text(676, 12, "gates, zero where not selected", "soft", 12)
    for number, gate in enumerate(GATES):
        x = 150 + 130 * number
        used = gate > 0
        canvas.box(
            x, 186, 110, 54, [f"expert {number + 1}", "B A x, rank r"], "second" if used else "soft",
            opacity=1 if used else 0.4, dashed=not used,
        )  # fmt: skip
        canvas.line([(100, 147), (125, 147), (125, 170), (x + 55, 170), (x + 55, 186)], "soft", 1)
        if used:
            canvas.line([(x + 55, 240), (x + 55, 262), (716, 262)], "second", 2)
            canvas.text(x + 62, 252, f"× {gate}", "second", 13, "start", bold=True)
    canvas.box(150, 280, 500, 40, ["frozen layer W x"])
    canvas.line([(55, 174), (55, 300), (148, 300)], "soft", 1.5, arrow=True)
    canvas.arrow((650, 300), (732, 300), (732, 280))
    canvas.shape("circle", "panel", cx=732, cy=262, r=16, stroke=palette.ink)
    canvas.text(732, 262, "+", "ink", 18, bold=True)
    canvas.arrow((748, 262), (790, 262), colour="ink")
    canvas.text(822, 262, "output", "ink", 14, bold=True)
    return canvas


def bars(canvas: Canvas, x: float, values: tuple[float, ...], colour: str, scale: float) -> None:
    """Draw one bar per expert, upwards from a line."""
    base = 112 if min(values) < 0 else 80
    for number, value in enumerate(values):
        height = abs(value) * scale
        top = base - height if value > 0 else base
        canvas.shape("rect", colour, x=x + 22 * number, y=f"{top:g}", width=16, height=f"{max(height, 1):g}")
    canvas.line([(x - 4, base), (x + 22 * len(values), base)], "soft", 1)
