r"""NormRouter: gates that are positive parts of normalised logits, for pools of experts (UniPool).

`s = g c relu(z / |z|)`, with a learned `g` that starts at 1 and a constant `c` that makes the expected sum of
squares of the `k` largest scores one. The scores are the gates, not renormalised (selector ``score_top_k``):
how much a token gets depends on how clearly it points at experts.

An expert that is masked (a logit of minus infinity) counts as zero in the norm, and is never selected. A
token whose logits are all negative would get no expert and give no gradient, which for few experts is common
(one in sixteen at `E = 4`): it gets a softmax over its logits instead, times `g c`.

Departures: the release draws `c` by chance as the mean of `1 / sqrt(sum of squares)`, which is infinite for
few experts; ours is `1 / sqrt(mean of the sum)` by integration, for logits of a symmetric normal
distribution. The softmax for tokens without a positive logit is ours.

Reference: Huang et al., "UniPool: A Globally Shared Expert Pool for Mixture-of-Experts", arXiv 2605.06665.
"""

import math

import torch
from torch import Tensor, nn

from moe_adapt.errors import UserError
from moe_adapt.routing.base import MODIFIERS, LogitModifier, Logits
from moe_adapt.routing.context import RouteContext
from moe_adapt.routing.softmax import softmax

__all__ = ["NormRouter", "norm_scale"]


def norm_scale(num_experts: int, k: int) -> float:
    """Return `c`: one over the root of the expected sum of the `k` largest `relu(z / |z|)^2`.

    `|z|` is independent of the direction of `z`, so the mean is `sum_j E[relu(z_(j))^2] / E` over the `k`
    largest of `E` standard normal numbers, whose densities are known.

    Args:
        num_experts: Number of experts, `E`.
        k: How many of them are kept.

    >>> round(norm_scale(4, 1), 1), round(norm_scale(32, 2), 1)
    (1.6, 2.1)
    """
    points = torch.linspace(0, 9, 9001, dtype=torch.float64)
    above = 0.5 * torch.erfc(points / math.sqrt(2))
    density = torch.exp(-points.square() / 2) / math.sqrt(2 * math.pi)
    total = torch.zeros_like(points)
    for better in range(min(k, num_experts)):
        worse = num_experts - 1 - better
        ways = num_experts * math.comb(num_experts - 1, better)
        total += ways * density * above**better * (1 - above) ** worse
    mean = torch.trapezoid(points.square() * total, points) / num_experts
    return float(mean.rsqrt())


@MODIFIERS.register("norm_router")
class NormRouter(LogitModifier):
    """Turns logits into scores `g c relu(z / |z|)`; use it with the selector ``score_top_k``.

    Args:
        num_experts: Number of experts, `E`.
        k: How many experts the selector keeps.

    Raises:
        UserError: If `k` is not between one and the number of experts.
    """

    reference = "UniPool, Huang et al. 2026, arXiv 2605.06665"
    reads_input = False

    def __init__(self, num_experts: int, k: int = 1) -> None:
        super().__init__()
        if not 1 <= k <= num_experts:
            raise UserError(f"norm_router needs k between 1 and num_experts={num_experts}, got {k}.")
        self.constant = norm_scale(num_experts, k)
        self.scale = nn.Parameter(torch.ones(1))  # FSDP takes no parameter without a dimension

    def forward(self, logits: Logits, x: Tensor, ctx: RouteContext) -> Logits:
        """Return scores that are not negative, [N, E]; masked experts stay at minus infinity in `select`."""
        masked = logits.weight == -torch.inf
        z = logits.weight.masked_fill(masked, 0.0)
        norm = z.square().sum(dim=-1, keepdim=True).clamp(min=1e-16).sqrt()
        some = (z > 0).any(dim=-1, keepdim=True)
        instead = softmax(logits.weight)
        scores = self.scale * self.constant * torch.where(some, (z / norm).relu(), instead)
        return logits._replace(select=scores.masked_fill(masked, -torch.inf), weight=scores)
