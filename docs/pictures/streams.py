"""A stream of tasks above the accuracy matrix of a committed run."""

import json
from pathlib import Path

from canvas import Canvas, Palette

__all__ = ["streams"]

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
METHOD = "seq_moelora"


def matrix() -> tuple[list[str], list[list[float]]]:
    """Return the tasks and the accuracies, row by row, of sequential routed LoRA in the committed results."""
    report = json.loads((RESULTS / "continual_instructions_small.json").read_text(encoding="utf-8"))
    row = next(row for row in report["rows"] if row["method"] == METHOD)
    accuracies = [
        [right / of for right, of in zip(correct, row["total"], strict=True)][: number + 1]
        for number, correct in enumerate(row["correct"])
    ]
    return row["tasks"], accuracies


def streams(palette: Palette) -> Canvas:
    """Return the picture."""
    tasks, accuracies = matrix()
    canvas = Canvas(860, 390, palette, "Tasks learned one after the other, and the accuracy matrix R[i, j]")
    left, step = 170, 112
    for number, task in enumerate(tasks):
        x = left + step * number
        canvas.box(x, 14, 96, 46, [f"task {number + 1}", task], colour="main")
        if number:
            canvas.arrow((x - 15, 37), (x - 2, 37))
    canvas.text(90, 37, "learned in this order", "soft", 12)
    top, high = 112, 38
    canvas.text(90, 92, "after", "soft", 12)
    canvas.text(left + 2.4 * step, 92, "accuracy on the test samples of task j", "soft", 12)
    for i, row in enumerate(accuracies):
        y = top + high * i
        canvas.text(90, y + high / 2, f"task {i + 1}", "ink", 13)
        for j, value in enumerate(row):
            x = left + step * j
            canvas.shape("rect", "main", 0.12 + 0.55 * value**2, x=x, y=y, width=96, height=high - 4, rx=4)
            canvas.text(x + 48, y + high / 2 - 2, f"{value:.2f}", "ink", 14, bold=i == j)
    end = top + high * len(tasks)
    first, last = accuracies[0][0], accuracies[-1][0]
    canvas.line([(left - 12, top + 16), (left - 12, end - 20)], "bad", 2, arrow=True)
    canvas.text(left - 4, end + 18, f"forgotten of task 1: {first - last:+.2f}", "bad", 13, "start")
    canvas.text(left - 4, end + 38, "(from right after the task to the end)", "soft", 12, "start")
    canvas.line([(left + step * 4 + 108, end - 22), (left + step * 4 + 136, end - 22)], "good", 2)
    mean = sum(accuracies[-1]) / len(tasks)
    canvas.text(left + step * 5 + 30, end - 40, "final:", "good", 13)
    canvas.text(left + step * 5 + 30, end - 4, f"{mean:.2f}", "good", 15, bold=True)
    canvas.text(left + step * 4 + 96, end + 18, "bold: plasticity, right after the task", "soft", 12, "end")
    return canvas
