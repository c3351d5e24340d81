"""Sum selector: every expert with gate one, as if their LoRAs were added up (O-LoRA)."""

import torch

from moe_adapt.routing.base import SELECTORS, Logits, RoutingDecision, Selector
from moe_adapt.routing.context import RouteContext

__all__ = ["SumSelector"]


@SELECTORS.register("sum")
class SumSelector(Selector):
    """Keeps all experts; every gate is 1, so that adding an expert changes no other's share."""

    reference = "O-LoRA, Wang et al. 2023, arXiv 2310.14152"

    def forward(self, logits: Logits, ctx: RouteContext) -> RoutingDecision:
        """Return gates of ones, [N, E]."""
        gates = torch.ones_like(logits.weight)
        return RoutingDecision(gates=gates, selected=torch.ones_like(gates, dtype=torch.bool))
