r"""Growing candidates: routers of a pool choose among more and more of its experts while training (ReXMoE).

Where `r` adjacent layers have their experts together, a router chooses among `r N` instead of `N`. From the
start that is hard to learn, so each forward draws, at each layer, which `N_t` experts it may choose:

    N_t = N                                          until t_s
    N_t = floor((1 + (r - 1) (t - t_s) / (t_e - t_s)) N)   between
    N_t = r N                                        from t_e on

Masked experts have logits of minus infinity: a score of zero is no mask where scores may be negative. In
evaluation all experts are candidates, so that predictions draw nothing.

Departures: times are shares of the training (the tuner's `progress`), since a number of steps fits one run
only; the paper's are 10,000 and 30,000 steps. Without a schedule all experts are candidates at once.

Reference: Tan et al., "ReXMoE: Reusing Experts with Minimal Overhead in Mixture-of-Experts", arXiv
2510.17483.
"""

import math

import torch
from torch import Tensor

from moe_adapt.errors import UserError
from moe_adapt.routing.base import MODIFIERS, LogitModifier, Logits
from moe_adapt.routing.context import RouteContext

__all__ = ["GrowingCandidates"]


@MODIFIERS.register("growing_candidates")
class GrowingCandidates(LogitModifier):
    """Masks all but a random, growing set of experts in training.

    Args:
        num_experts: Number of experts of the pool, `r N`.
        reuse: How many layers have their experts together, `r`.
        start: Share of the training after which the number grows, `t_s`.
        end: Share after which all are candidates, `t_e`. Higher: a slower growth.

    Raises:
        UserError: If the layers do not divide the experts, or not `0 <= start < end <= 1`.
    """

    reference = "ReXMoE, Tan et al. 2025, arXiv 2510.17483"
    reads_input = False

    def __init__(self, num_experts: int, reuse: int = 2, start: float = 0.1, end: float = 0.5) -> None:
        super().__init__()
        if reuse < 1 or num_experts % reuse:
            raise UserError(
                f"growing_candidates: reuse={reuse} layers do not divide num_experts={num_experts}, the "
                "number of experts of a pool; change one."
            )
        if not 0 <= start < end <= 1:
            raise UserError(f"growing_candidates needs 0 <= start < end <= 1, got {start} and {end}.")
        self.num_experts, self.own, self.reuse = num_experts, num_experts // reuse, reuse
        self.start, self.end = start, end

    def count(self, progress: float) -> int:
        """Return the number of candidates `N_t` at a share of the training."""
        done = min(max((progress - self.start) / (self.end - self.start), 0.0), 1.0)
        return math.floor((1 + (self.reuse - 1) * done) * self.own + 1e-9)

    def forward(self, logits: Logits, x: Tensor, ctx: RouteContext) -> Logits:
        """Return the logits, minus infinity at experts that are no candidates of this forward."""
        count = self.count(ctx.progress) if ctx.training else self.num_experts
        if count >= self.num_experts:
            return logits
        draw = ctx.draw(lambda: torch.rand(self.num_experts, device=x.device), name="growing_candidates")
        masked = torch.ones_like(draw, dtype=torch.bool)
        masked[draw.topk(count).indices] = False
        weight = logits.weight.masked_fill(masked, -torch.inf)
        same = logits.select is logits.weight
        return logits._replace(
            select=weight if same else logits.select.masked_fill(masked, -torch.inf), weight=weight
        )
