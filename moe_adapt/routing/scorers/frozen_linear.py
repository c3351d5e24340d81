"""Frozen linear scorer: a random linear router that is never trained.

The weight is a persistent buffer: it is saved with the adapter, but no optimizer, weight decay or unfreezing
reaches it. A router that cannot change cannot forget. SMoE-Dropout besides raises the number of experts per
token during training, which is not part of the scorer.

Reference: Chen et al., "Sparse MoE as the New Dropout", arXiv 2303.01610.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_adapt.experts import ExpertBank
from moe_adapt.routing.base import SCORERS, Scorer
from moe_adapt.routing.context import RouteContext

__all__ = ["FrozenLinearScorer"]


@SCORERS.register("frozen_linear")
class FrozenLinearScorer(Scorer):
    """Random linear router without trainable parameters, initialised as the `linear` scorer.

    Args:
        in_features: Width of the tokens, `d`.
        num_experts: Number of experts, `E`.
    """

    reference = "SMoE-Dropout, Chen et al. 2023, arXiv 2303.01610"

    rows = "weight"
    weight: Tensor

    def __init__(self, in_features: int, num_experts: int) -> None:
        super().__init__()
        weight = torch.empty(num_experts, in_features)
        nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
        self.register_buffer("weight", weight)

    def forward(self, x: Tensor, ctx: RouteContext, bank: ExpertBank) -> Tensor:
        """Return `x R^T`, [N, E]; the gradient reaches the tokens only."""
        return F.linear(x, self.weight.to(x.dtype))
