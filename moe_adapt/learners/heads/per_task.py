"""A linear classifier per task, over that task's classes alone; old ones are frozen bit for bit."""

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from moe_adapt.learners.care.growing import Growing

__all__ = ["TaskHeads"]


class TaskHeads(Growing):
    """Rows of ``z = W_t f + b_t`` for the classes of every task; new rows start at zero.

    Args:
        width: Features per sample, `d`.

    >>> heads = TaskHeads(width=3)
    >>> heads.add(2), heads.add(4)
    (None, None)
    >>> heads(torch.ones(5, 3), slice(2, 6)).shape
    torch.Size([5, 4])
    """

    tensors: ClassVar[tuple[str, ...]] = ("weight", "bias")

    def __init__(self, width: int) -> None:
        super().__init__({"weight": (width,), "bias": ()})
        self.width = width

    def add(self, classes: int) -> None:
        """Freeze all rows and append trainable ones for the classes of a task."""
        self.append({"weight": torch.zeros(classes, self.width), "bias": torch.zeros(classes)})

    def forward(self, features: Tensor, rows: slice) -> Tensor:
        """Return the logits [B, C_t] of features [B, d] over the rows of one task."""
        return F.linear(features, self.whole("weight")[rows], self.whole("bias")[rows])
