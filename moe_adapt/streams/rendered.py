"""Questions about rendered pictures: the smallest image-and-text stream on which routers can drift.

A picture shows one shape in one colour at one place. Every task asks for another of its properties, so that
the pictures of all tasks come from one distribution and only the question tells tasks apart.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from moe_adapt.errors import UserError, did_you_mean
from moe_adapt.streams.instructions import Instruction, InstructionTask

__all__ = ["QUESTIONS", "draw_shape", "rendered_tasks"]

COLOURS = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1), "white": (1, 1, 1)}
SHAPES = ("square", "disc", "cross")
PLACES = ("left", "right")
SIZES = ("small", "large")

#: Name of a task -> what it asks, and the possible answers.
QUESTIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "colour": ("What colour is the shape?", tuple(COLOURS)),
    "shape": ("What shape is it?", SHAPES),
    "place": ("On which side is the shape?", PLACES),
    "size": ("Is the shape small or large?", SIZES),
}


def draw_shape(
    colour: str, shape: str, place: str, size: str, noise: np.random.Generator, pixels: int = 28
) -> Tensor:
    """Return a picture in [0, 1] with a little noise, float32 [3, pixels, pixels].

    Args:
        colour: A key of `COLOURS`.
        shape: One of `SHAPES`.
        place: One of `PLACES`.
        size: One of `SIZES`.
        noise: Shifts the shape by a pixel or two, and blurs nothing else.
        pixels: Side of the picture.
    """
    half = pixels * (0.2 if size == "large" else 0.11)
    x = pixels * (0.28 if place == "left" else 0.72) + noise.uniform(-1, 1)
    y = pixels / 2 + noise.uniform(-2, 2)
    rows, columns = np.mgrid[0:pixels, 0:pixels]
    dy, dx = np.abs(rows - y), np.abs(columns - x)
    inside = {
        "square": np.maximum(dx, dy) <= half,
        "disc": dx**2 + dy**2 <= half**2 * 1.2,
        "cross": (np.minimum(dx, dy) <= half / 3) & (np.maximum(dx, dy) <= half),
    }[shape]
    picture = 0.05 * noise.random((3, pixels, pixels))
    picture[:, inside] = np.array(COLOURS[colour])[:, None]
    return torch.from_numpy(picture).float()


def rendered_tasks(
    order: Sequence[str] | None = None, train: int = 500, test: int = 100, seed: int = 0, pixels: int = 28
) -> list[InstructionTask]:
    """Return a task per question.

    Args:
        order: Names of the questions; None takes all.
        train: Training instructions per task.
        test: Test instructions per task.
        seed: Fixes the pictures.
        pixels: Side of the pictures.

    Raises:
        UserError: If there is no such question.
    """
    tasks = []
    for name in QUESTIONS if order is None else order:
        if name not in QUESTIONS:
            raise UserError(f"there is no question {name!r}.{did_you_mean(name, QUESTIONS)}")
        number = list(QUESTIONS).index(name)

        def some(part: int, count: int, number: int = number, name: str = name) -> list[Instruction]:
            seeds = ([seed, number, part, row] for row in range(count))
            return [_instruction(name, np.random.default_rng(words), pixels) for words in seeds]

        tasks.append(
            InstructionTask(
                name, some(0, train), some(1, test), {"rendered": name, "pixels": pixels, "seed": seed}
            )
        )
    return tasks


def _instruction(name: str, rng: np.random.Generator, pixels: int) -> Instruction:
    shown = {
        "colour": str(rng.choice(list(COLOURS))),
        "shape": str(rng.choice(SHAPES)),
        "place": str(rng.choice(PLACES)),
        "size": str(rng.choice(SIZES)),
    }
    question, choices = QUESTIONS[name]
    return Instruction(question, shown[name], choices, draw_shape(**shown, noise=rng, pixels=pixels))
