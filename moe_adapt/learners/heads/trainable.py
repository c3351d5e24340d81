"""Classifiers whose rows grow with the classes seen."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moe_adapt.learners.growth import grow_rows

__all__ = ["GrowingCosine", "GrowingLinear"]


class GrowingLinear(nn.Module):
    """A linear classifier, ``z = W f + b``; new rows are zero, so that old predictions do not move by chance.

    Args:
        width: Features per sample, `d`.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(0, width))
        self.bias = nn.Parameter(torch.zeros(0))

    def grow(self, classes: int) -> None:
        """Make room for `classes` classes in all; do it before an optimiser exists."""
        self.weight = nn.Parameter(grow_rows(self.weight.detach(), classes))
        self.bias = nn.Parameter(grow_rows(self.bias.detach(), classes))

    def forward(self, features: Tensor) -> Tensor:
        """Return logits [B, C] of features [B, d]."""
        return F.linear(features, self.weight, self.bias)


class GrowingCosine(nn.Module):
    """A cosine classifier, ``z_c = scale * cos(f, w_c)``; new rows are normal with standard deviation 0.02.

    Args:
        width: Features per sample, `d`.
        scale: Factor on the cosines.
    """

    def __init__(self, width: int, scale: float = 20.0) -> None:
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(torch.zeros(0, width))

    def grow(self, classes: int) -> None:
        """Make room for `classes` classes in all; do it before an optimiser exists."""
        old = self.weight.detach()
        new = 0.02 * torch.randn(max(0, classes - len(old)), old.shape[1], device=old.device)
        self.weight = nn.Parameter(torch.cat([old, new]))

    def forward(self, features: Tensor) -> Tensor:
        """Return scaled cosines [B, C] of features [B, d]."""
        return self.scale * F.normalize(features, dim=1) @ F.normalize(self.weight, dim=1).T
