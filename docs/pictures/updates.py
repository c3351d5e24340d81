"""What a rule does to an update: the part along old inputs is removed, the rest is made."""

import math

from canvas import Canvas, Palette

__all__ = ["updates"]

ANGLE = math.radians(-24)
#: How far the points are from the long axis.
SIDES = (3, -7, 5, -2, 8, -6, 1, -9, 6, 0, -4, 9, -8, 4, 7, -3, 2, -5, 0)
DELTA = (170.0, -118.0)


def updates(palette: Palette) -> Canvas:
    """Return the picture."""
    canvas = Canvas(860, 360, palette, "An update and its part in the null space of old inputs")
    x0, y0 = 250, 205
    along = (math.cos(ANGLE), math.sin(ANGLE))
    across = (-along[1], along[0])
    degrees = math.degrees(ANGLE)
    canvas.shape(
        "ellipse", "second", 0.22, cx=x0, cy=y0, rx=215, ry=44, transform=f"rotate({degrees:g} {x0} {y0})"
    )
    for step, side in zip(range(-9, 10), SIDES, strict=True):
        x = x0 + 20 * step * along[0] + 2.6 * side * across[0]
        y = y0 + 20 * step * along[1] + 2.6 * side * across[1]
        canvas.shape("circle", "second", 0.8, cx=f"{x:g}", cy=f"{y:g}", r=3)
    canvas.line([(x0 - 225 * along[0], y0 - 225 * along[1]), (x0 + 235 * along[0], y0 + 235 * along[1])],
                "second", 1, dashed=True)  # fmt: skip
    inside = DELTA[0] * along[0] + DELTA[1] * along[1]
    kept = (DELTA[0] - inside * along[0], DELTA[1] - inside * along[1])
    tip = (x0 + DELTA[0], y0 + DELTA[1])
    end = (x0 + kept[0], y0 + kept[1])
    canvas.line([tip, end], "soft", 1.5, dashed=True)
    canvas.arrow((x0, y0), tip, colour="bad", width=3)
    canvas.arrow((x0, y0), end, colour="good", width=3)
    canvas.text(tip[0] + 8, tip[1] - 14, "Δ of the optimizer", "bad", 14, "end", bold=True)
    canvas.text(end[0] - 12, end[1] - 6, "Δ (I - V Vᵀ)", "good", 14, "end", bold=True)
    canvas.text(60, 320, "inputs of old tasks", "second", 13, "start")
    canvas.text(60, 340, "V: their leading directions", "second", 13, "start")
    notes = [
        ("strict", "no part along V: old scores stay"),
        ("soft", "every direction slowed by its old energy"),
        ("null_ratio", "only where old inputs had next to none"),
        ("trust", "along V of related tasks, rescaled only"),
        ("guard", "stored inputs keep their experts"),
        ("paper", "rescaled within old and new: removes nothing"),
    ]
    for number, (name, meaning) in enumerate(notes):
        y = 70 + 44 * number
        canvas.text(540, y, name, "bad" if name == "paper" else "good", 14, "start", bold=True)
        canvas.text(540, y + 18, meaning, "soft", 12, "start")
    canvas.text(540, 36, "rules", "ink", 14, "start", bold=True)
    return canvas
