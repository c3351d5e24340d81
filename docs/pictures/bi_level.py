"""CaRE's two decisions for one sample at one block: which routers, then which experts of each."""

from canvas import Canvas, Palette

__all__ = ["bi_level"]

ENTROPIES = (0.93, 0.21, 0.78, 0.34)
#: Router -> its experts; a router knows those of its own task and earlier ones.
CHOSEN = {1: (0, 1), 3: (1, 3)}


def bi_level(palette: Palette) -> Canvas:
    """Return the picture."""
    canvas = Canvas(860, 390, palette, "Perceptrons choose routers, routers choose experts")
    canvas.box(10, 34, 110, 54, ["sample", "routing row [d]"])
    canvas.text(75, 138, "1  which tasks", "main", 14, bold=True)
    canvas.text(75, 158, "know it?", "main", 14, bold=True)
    canvas.text(75, 222, "2  which experts", "second", 14, bold=True)
    canvas.text(75, 242, "of theirs?", "second", 14, bold=True)
    for task, entropy in enumerate(ENTROPIES):
        x, chosen = 180 + 150 * task, task in CHOSEN
        canvas.box(x, 30, 126, 62, [f"perceptron {task + 1}", "classes of the task"])
        canvas.text(x + 63, 106, f"entropy {entropy}", "main" if chosen else "soft", 12, bold=chosen)
        canvas.box(
            x, 124, 126, 46, [f"router {task + 1}", "chosen" if chosen else "not asked"],
            "main" if chosen else "soft", opacity=1 if chosen else 0.4, dashed=not chosen,
        )  # fmt: skip
        used = any(task in experts for experts in CHOSEN.values())
        canvas.box(
            x, 232, 126, 46, [f"expert {task + 1}", "bottleneck"], "second" if used else "soft",
            opacity=1 if used else 0.4, dashed=not used,
        )  # fmt: skip
    canvas.arrow((120, 61), (178, 61))
    for router, experts in CHOSEN.items():
        for expert in experts:
            start, end = 243 + 150 * router, 243 + 150 * expert
            canvas.arrow((start, 170), (end + (start - end) * 0.06, 230), colour="second", width=2)
    used = sorted({expert for experts in CHOSEN.values() for expert in experts})
    for expert in used:
        canvas.line([(243 + 150 * expert, 278), (243 + 150 * expert, 308)], "second", 2)
    canvas.line([(243, 308), (760, 308)], "second", 2)
    canvas.box(10, 322, 470, 46, ["MLP of the block, frozen", "with the shared expert, always on"])
    canvas.arrow((480, 345), (738, 345))
    canvas.arrow((760, 308), (760, 327), colour="second", width=2)
    canvas.shape("circle", "panel", cx=760, cy=345, r=16, stroke=palette.ink)
    canvas.text(760, 345, "+", "ink", 18, bold=True)
    canvas.arrow((776, 345), (800, 345), colour="ink")
    canvas.text(803, 345, "next", "ink", 13, "start")
    return canvas
