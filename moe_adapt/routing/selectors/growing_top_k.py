"""Growing top-k: the number of experts per token rises during training (SMoE-Dropout).

`K` goes linearly from `k_min` to `k_max` over the optimizer steps; the gates are a softmax over the selected
logits. With a frozen random router (`frozen_linear`) this is SMoE-Dropout: experts learn to work in any
company, and quality rises smoothly with the `K` chosen at inference. The tuner's `progress` drives it (our
Lightning modules keep it; otherwise `K` is `k_max`).

Reference: Chen et al., "Sparse MoE as the New Dropout", arXiv 2303.01610 (16 experts, 8 to 16).
"""

from moe_adapt.errors import UserError
from moe_adapt.routing.base import SELECTORS, Logits, RoutingDecision
from moe_adapt.routing.context import RouteContext
from moe_adapt.routing.selectors.top_k import TopKSelector

__all__ = ["GrowingTopKSelector"]


@SELECTORS.register("growing_top_k")
class GrowingTopKSelector(TopKSelector):
    """Top-k with a `K` that grows while training.

    Args:
        k_min: Experts per token at the first step.
        k_max: Experts per token at the last step. Higher: more experts per token at the end of training and
            at inference.
        k_eval: Experts per token at inference; None for `k_max`.

    Raises:
        UserError: If not `1 <= k_min <= k_max`, or `k_eval` is less than one.
    """

    reference = "SMoE-Dropout, Chen et al. 2023, arXiv 2303.01610"

    def __init__(self, k_min: int = 2, k_max: int = 4, k_eval: int | None = None) -> None:
        super().__init__(max(k_max, k_eval or 0), renormalize=True)
        if not 1 <= k_min <= k_max or (k_eval is not None and k_eval < 1):
            raise UserError(
                f"growing_top_k needs 1 <= k_min <= k_max, got {k_min}, {k_max}, k_eval={k_eval}."
            )
        self.k_min, self.k_max, self.k_eval = k_min, k_max, k_eval

    def forward(self, logits: Logits, ctx: RouteContext) -> RoutingDecision:
        """Return gates that are zero outside the best experts, [N, E]."""
        if ctx.training:
            k = round(self.k_min + (self.k_max - self.k_min) * ctx.progress)
        else:
            k = self.k_eval or self.k_max
        return self.choose(logits, k)
