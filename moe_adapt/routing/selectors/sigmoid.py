"""Sigmoid selector: every expert, weighted by the sigmoid of its own logit and of nothing else."""

import torch

from moe_adapt.routing.base import SELECTORS, Logits, RoutingDecision, Selector
from moe_adapt.routing.context import RouteContext

__all__ = ["SigmoidSelector"]


@SELECTORS.register("sigmoid")
class SigmoidSelector(Selector):
    """Keeps all experts; gates lie between 0 and 1 and need not sum to one."""

    reference = "PHATGOOSE's training of gates, Muqeeth et al. 2024, arXiv 2402.05859"

    unit_gate_for_one_expert = False

    def forward(self, logits: Logits, ctx: RouteContext) -> RoutingDecision:
        """Return the sigmoids of the weight logits, [N, E]."""
        gates = logits.weight.sigmoid()
        return RoutingDecision(gates=gates, selected=torch.ones_like(gates, dtype=torch.bool))
