r"""Product-key scorer: the logit of expert `(i, j)` of a square grid is the sum of two short scores.

A linear router on a thousand rank-one experts has more numbers than many adapters: `E d`. On a grid of
`n = \sqrt E` rows and columns `2 n d` suffice,

$$z_{(i, j)} = \log\mathrm{softmax}(\hat u)_i + \log\mathrm{softmax}(\hat v)_j, \qquad u = U x,\ v = V x$$

with `\hat u` and `\hat v` normalised to mean 0 and variance 1. The softmax over all experts is `exp(z)`. The
selector `product_top_k` finds the best of them from the best rows and columns alone.

Departures: the release normalises over the batch, which makes a token's route depend on its neighbours; here
over the scores of the token. It rounds the root down and drops experts; here a number that is no square is an
error.

Reference: Shi et al., "OmniMoE: An Efficient MoE by Orchestrating Atomic Experts at Scale", 2026, arXiv
2602.05711; Lample et al., "Large Memory Layers with Product Keys", 2019, arXiv 1907.05242.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_adapt.errors import UserError
from moe_adapt.experts import ExpertBank
from moe_adapt.routing.base import SCORERS, Scorer
from moe_adapt.routing.context import RouteContext

__all__ = ["ProductKeyScorer"]


@SCORERS.register("product_key")
class ProductKeyScorer(Scorer):
    """Trainable router on a square grid of experts.

    Args:
        in_features: Width of the tokens, `d`.
        num_experts: Number of experts, `E`, a square; expert `i n + j` is row `i`, column `j`.
        normalize: Whether the scores of rows and of columns get mean 0 and variance 1 per token.

    Raises:
        UserError: If the number of experts is no square.
    """

    reference = "OmniMoE, Shi et al. 2026, arXiv 2602.05711"
    on_grid = True

    def __init__(self, in_features: int, num_experts: int, normalize: bool = True) -> None:
        super().__init__()
        side = math.isqrt(num_experts)
        if side * side != num_experts:
            raise UserError(
                f"the scorer 'product_key' puts experts on a square, got num_experts={num_experts}; take "
                f"{max(side, 1) ** 2} or {(side + 1) ** 2}."
            )
        self.side, self.normalize = side, normalize
        self.weight = nn.Parameter(torch.empty(2 * side, in_features))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))

    def forward(self, x: Tensor, ctx: RouteContext, bank: ExpertBank) -> Tensor:
        """Return the log-probability of every expert, [N, E]."""
        scores = F.linear(x, self.weight.to(x.dtype)).unflatten(-1, (2, self.side))
        if self.normalize:
            scores = F.layer_norm(scores, (self.side,))
        rows, columns = scores.log_softmax(dim=-1).unbind(-2)
        return (rows.unsqueeze(-1) + columns.unsqueeze(-2)).flatten(-2)
