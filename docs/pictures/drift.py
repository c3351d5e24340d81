"""Prequential evaluation on a stream that drifts, computed: one learner that adapts, one that does not."""

import random

from canvas import Canvas, Palette

__all__ = ["drift"]

STEPS = (
    ("row x", "arrives"),
    ("predict", "answer is scored"),
    ("label y", "is shown"),
    ("learn", "one update"),
)
ROWS, DRIFT, WINDOW = 2000, 1000, 150


def accuracies(adapts: bool) -> list[float]:
    """Return windowed accuracies of a threshold learner on one feature whose threshold jumps."""
    rng = random.Random(3)
    threshold, right, curve = 0.2, [], []
    for row in range(ROWS):
        x = rng.random()
        label = (x > (0.35 if row < DRIFT else 0.7)) != (rng.random() < 0.08)
        guess = x > threshold
        right.append(guess == label)
        if guess != label and (adapts or row < DRIFT):
            threshold += 0.02 if guess else -0.02
        curve.append(sum(right[-WINDOW:]) / len(right[-WINDOW:]))
    return curve


def drift(palette: Palette) -> Canvas:
    """Return the picture."""
    canvas = Canvas(860, 380, palette, "Test, then train, row by row; accuracy in a window around a drift")
    for number, lines in enumerate(STEPS):
        x = 40 + 205 * number
        canvas.box(x, 14, 150, 50, lines, colour="main" if number in (1, 3) else "soft")
        if number:
            canvas.arrow((x - 55, 39), (x - 2, 39))
    canvas.arrow((730, 64), (730, 84), (115, 84), (115, 66))
    canvas.text(422, 98, "next row", "soft", 12)
    left, top, wide, high = 70, 128, 700, 200
    for value in (0.6, 0.8, 1.0):
        y = top + high * (1.0 - value) / 0.5
        canvas.line([(left, y), (left + wide, y)], "soft", 0.6)
        canvas.text(left - 8, y, f"{value:.1f}", "soft", 12, "end")
    canvas.text(left, top - 12, f"accuracy in a window of {WINDOW} rows", "soft", 12, "start")
    bayes = top + high * (1.0 - 0.92) / 0.5
    canvas.line([(left, bayes), (left + wide, bayes)], "good", 1.5, dashed=True)
    canvas.text(left + wide + 6, bayes, "best possible", "good", 12, "start")
    at = left + wide * DRIFT / ROWS
    canvas.line([(at, top - 6), (at, top + high)], "bad", 1.5, dashed=True)
    canvas.text(at + 6, top + high - 8, "drift: the rule changes", "bad", 13, "start")
    for adapts, colour, name in ((False, "second", "stands still"), (True, "main", "adapts")):
        curve = accuracies(adapts)
        points = [
            (left + wide * row / ROWS, top + high * (1.0 - max(curve[row], 0.5)) / 0.5)
            for row in range(WINDOW, ROWS, 10)
        ]
        canvas.line(points, colour, 2)
        y = points[-1][1] + (12 if adapts else 0)
        canvas.text(left + wide + 6, y, name, colour, 13, "start", bold=True)
    canvas.line([(left, top + high), (left + wide, top + high)], "ink", 1)
    for row in range(0, ROWS + 1, 500):
        canvas.text(left + wide * row / ROWS, top + high + 14, f"{row:,}", "soft", 12)
    canvas.text(left + wide / 2, top + high + 34, "rows", "soft", 12)
    return canvas
