"""Linear scorer: one bias-free fp32 projection per site, `z = R x`.

Initialised with kaiming-uniform (`a = sqrt 5`), that is U(-1/sqrt d, 1/sqrt d): the standard deviation of the
logits is then 0.577 rms(x) at every width, which a normal distribution of fixed width is not.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_adapt.experts import ExpertBank
from moe_adapt.routing.base import SCORERS, Scorer
from moe_adapt.routing.context import RouteContext

__all__ = ["LinearScorer"]


@SCORERS.register("linear")
class LinearScorer(Scorer):
    """Trainable linear router.

    Args:
        in_features: Width of the tokens, `d`.
        num_experts: Number of experts, `E`.
    """

    reference = "Shazeer et al. 2017, arXiv 1701.06538"

    rows = "weight"

    def __init__(self, in_features: int, num_experts: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_experts, in_features))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))

    def forward(self, x: Tensor, ctx: RouteContext, bank: ExpertBank) -> Tensor:
        """Return `x R^T`, [N, E]."""
        return F.linear(x, self.weight.to(x.dtype))
