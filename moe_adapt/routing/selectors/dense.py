"""Dense selector: every expert, weighted by the softmax of its logit."""

import torch

from moe_adapt.routing.base import SELECTORS, Logits, RoutingDecision, Selector
from moe_adapt.routing.context import RouteContext
from moe_adapt.routing.softmax import softmax

__all__ = ["DenseSelector"]


@SELECTORS.register("dense")
class DenseSelector(Selector):
    """Keeps all experts; gates are `softmax(z)` and sum to one."""

    reference = "no paper: the softmax mixture of experts"

    def forward(self, logits: Logits, ctx: RouteContext) -> RoutingDecision:
        """Return softmax gates, [N, E]."""
        gates = softmax(logits.weight)
        return RoutingDecision(gates=gates, selected=torch.ones_like(gates, dtype=torch.bool))
