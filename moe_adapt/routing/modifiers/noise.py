"""Gaussian noise on the logits while training, so that close experts take turns (noisy top-k).

Reference: Shazeer et al., "Outrageously Large Neural Networks", arXiv 1701.06538 (there with a learned
width).
"""

import torch
from torch import Tensor

from moe_adapt.errors import UserError
from moe_adapt.routing.base import MODIFIERS, LogitModifier, Logits
from moe_adapt.routing.context import RouteContext

__all__ = ["GaussianNoise"]


@MODIFIERS.register("gaussian_noise")
class GaussianNoise(LogitModifier):
    """Adds N(0, std^2) to the logits in training mode; evaluation is deterministic.

    Args:
        std: Standard deviation of the noise. Higher: more exploration while training, choices closer to
            random.
        select_only: Whether the noise changes only the choice of experts, not their weights.

    Raises:
        UserError: If `std` is negative.
    """

    reference = "Shazeer et al. 2017, arXiv 1701.06538"
    reads_input = False

    def __init__(self, std: float = 1.0, select_only: bool = True) -> None:
        super().__init__()
        if std < 0:
            raise UserError(f"the noise's std must not be negative, got {std}.")
        self.std = std
        self.select_only = select_only

    def forward(self, logits: Logits, x: Tensor, ctx: RouteContext) -> Logits:
        """Return noisy logits; the draw is reused when checkpointing runs the site again."""
        if not ctx.training:
            return logits
        noise = self.std * ctx.draw(lambda: torch.randn_like(logits.select), name="gaussian_noise")
        weight = logits.weight if self.select_only else logits.weight + noise
        return logits._replace(select=logits.select + noise, weight=weight)
