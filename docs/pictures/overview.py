"""What the library is for, in one picture: a backbone, experts, and three jobs."""

from canvas import Canvas, Palette

__all__ = ["overview"]


def overview(palette: Palette) -> Canvas:
    """Return the picture."""
    canvas = Canvas(860, 250, palette, "A frozen backbone with routed experts; fit, stream and drift; export")
    canvas.box(10, 60, 150, 130, ["any backbone", "Hugging Face, timm", "frozen"])
    canvas.arrow((160, 125), (198, 125))
    canvas.box(200, 40, 205, 170, [], colour="main", opacity=0.5)
    canvas.text(302, 60, "+ experts with a router", "main", 14, bold=True)
    for number in range(4):
        used = number in (0, 2)
        canvas.box(
            228 + 40 * number, 118, 34, 70, [], "second" if used else "soft", opacity=1 if used else 0.4,
            dashed=not used,
        )  # fmt: skip
        canvas.text(245 + 40 * number, 153, f"E{number + 1}", "ink" if used else "soft", 13)
        if used:
            canvas.line([(305, 92), (245 + 40 * number, 116)], "second", 2, arrow=True)
    canvas.text(305, 84, "token by token", "soft", 12)
    jobs = [
        ("fit", "fine-tune on a task"),
        ("stream", "task after task"),
        ("drift", "row after row, the rule changes"),
    ]
    for number, lines in enumerate(jobs):
        y = 14 + 78 * number
        canvas.box(450, y, 220, 62, lines, colour="main")
        canvas.arrow((405, 125), (425, 125), (425, y + 31), (448, y + 31))
        canvas.arrow((670, y + 31), (695, y + 31), (695, 125), (708, 125))
    canvas.box(710, 70, 140, 110, ["export", "PEFT adapter", "stock LoRA", "Hugging Face Hub"], colour="good")
    return canvas
