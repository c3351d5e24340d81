"""Small streams of Gaussian classes, and an encoder without pretrained weights."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from moe_adapt.backbones import Encoder
from moe_adapt.streams import TaskStream

#: Numbers per sample.
WIDTH = 8


__all__ = ["ToyEncoder", "gaussian_stream"]


class _Points(torch.utils.data.Dataset):
    """Rows of a matrix as ``x`` [8]."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {"x": self.x[row]}


class ToyEncoder(Encoder):
    """A fixed two-layer network on ``x`` [B, 8].

    Args:
        seed: Fixes its weights.
        width: Features per sample.
    """

    def __init__(self, seed: int = 0, width: int = WIDTH) -> None:
        generator = torch.Generator().manual_seed(seed)
        model = nn.Sequential(nn.Linear(WIDTH, 16), nn.Tanh(), nn.Linear(16, width))
        for parameter in model.parameters():
            parameter.data = 0.5 * torch.randn(parameter.shape, generator=generator)
        super().__init__(model, "toy", width)

    def forward(self, batch: dict[str, Any]) -> Tensor:
        """Return features [B, d]."""
        return self.model(batch["x"])


def gaussian_stream(
    tasks: int = 4,
    classes_per_task: int = 2,
    train: int = 20,
    test: int = 15,
    seed: int = 0,
    spread: float = 0.5,
) -> TaskStream:
    """Return a stream of disjoint classes, each a Gaussian around its own centre.

    Args:
        tasks: Number of tasks.
        classes_per_task: Classes of each.
        train: Training samples of each class.
        test: Test samples of each class.
        seed: Fixes the samples.
        spread: Standard deviation of a class; the centres have 2.
    """
    rng = np.random.default_rng(seed)
    classes = tasks * classes_per_task
    centres = 2.0 * rng.standard_normal((classes, WIDTH))

    def split(size: int) -> tuple[_Points, np.ndarray]:
        labels = np.repeat(np.arange(classes), size)
        x = centres[labels] + spread * rng.standard_normal((len(labels), WIDTH))
        return _Points(torch.from_numpy(x).float()), labels

    (train_x, train_y), (test_x, test_y) = split(train), split(test)
    train_rows, test_rows = (
        [np.flatnonzero(y // classes_per_task == task) for task in range(tasks)] for y in (train_y, test_y)
    )
    names = [f"class {label}" for label in range(classes)]
    return TaskStream(
        "class", train_x, test_x, train_rows, test_rows, train_y, test_y, names, origin={"toy": seed}
    )
