"""Small streams of Gaussian classes, and an encoder without pretrained weights."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from moe_adapt.backbones import Encoder
from moe_adapt.streams import TaskStream

WIDTH = 8


class Vectors(torch.utils.data.Dataset):
    """Rows of an array, read one by one or many at once."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {"x": self.x[row]}


class ToyEncoder(Encoder):
    """A fixed two-layer network on ``x`` [B, 8]."""

    def __init__(self, seed: int = 0, width: int = WIDTH) -> None:
        generator = torch.Generator().manual_seed(seed)
        model = nn.Sequential(nn.Linear(WIDTH, 16), nn.Tanh(), nn.Linear(16, width))
        for parameter in model.parameters():
            parameter.data = 0.5 * torch.randn(parameter.shape, generator=generator)
        super().__init__(model, "toy", width)

    def forward(self, batch: dict[str, Any]) -> Tensor:
        return self.model(batch["x"])


def gaussian_stream(
    tasks: int = 4,
    classes_per_task: int = 2,
    train: int = 20,
    test: int = 15,
    seed: int = 0,
    spread: float = 0.5,
) -> TaskStream:
    """Disjoint classes, each a Gaussian around its own centre."""
    rng = np.random.default_rng(seed)
    classes = tasks * classes_per_task
    centres = 2.0 * rng.standard_normal((classes, WIDTH))

    def split(size: int) -> tuple[Vectors, np.ndarray]:
        labels = np.repeat(np.arange(classes), size)
        x = centres[labels] + spread * rng.standard_normal((len(labels), WIDTH))
        return Vectors(torch.from_numpy(x).float()), labels

    (train_x, train_y), (test_x, test_y) = split(train), split(test)
    rows = [[np.flatnonzero(y // classes_per_task == t) for t in range(tasks)] for y in (train_y, test_y)]
    names = [f"class {label}" for label in range(classes)]
    return TaskStream("class", train_x, test_x, *rows, train_y, test_y, names, origin={"toy": seed})
