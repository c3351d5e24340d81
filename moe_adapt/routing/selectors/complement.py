"""Complement: one expert that every token uses beside those that a selector of its own chooses.

The last expert is the complement. It has the gate `share` for every token, and takes part in nothing else:
the inner selector sees the logits of the others alone, so that with a complement of zero the mixture is that
of pure routing. It is the expert that goes on learning beside a frozen pool; `moe_adapt.tuner.complement`
adds one to an adapter.

FusionRoute adds logits of the router itself to those of a chosen model; here the complement is an expert at
every layer.

Reference: Xiong et al., "Token-Level LLM Collaboration via FusionRoute", arXiv 2601.05106.
"""

import torch
from torch import Tensor

from moe_adapt.errors import UserError
from moe_adapt.registry import Spec
from moe_adapt.routing.base import SELECTORS, Logits, RoutingDecision, Selector
from moe_adapt.routing.context import RouteContext

__all__ = ["ComplementSelector"]


@SELECTORS.register("complement")
class ComplementSelector(Selector):
    """Gives every token the last expert, and leaves the others to an inner selector.

    Args:
        inner: The selector of the other experts.
        share: Gate of the complement. Higher: more weight on it from the start.
    """

    reference = "FusionRoute, Xiong et al. 2026, arXiv 2601.05106, there on the logits of models"
    unit_gate_for_one_expert = False

    def __init__(self, inner: Spec = "top_k", share: float = 1.0) -> None:
        super().__init__()
        self.inner = SELECTORS.build(inner)
        self.nulls = self.inner.nulls
        self.share = share

    def check(self, num_experts: int) -> None:
        """Raise `UserError` if no expert is left for the inner selector, or its options do not fit."""
        if num_experts < 2:
            raise UserError("a complement needs another expert beside it; set num_experts to 2 or more.")
        self.inner.check(num_experts - 1)

    def slots(self, num_experts: int) -> int | None:
        """Return one more than the inner selector."""
        inner = self.inner.slots(num_experts - 1)
        return None if inner is None else inner + 1

    def forward(self, logits: Logits, ctx: RouteContext) -> RoutingDecision:
        """Return the inner selector's gates with the complement's among them, [N, E + nulls]."""
        place = logits.select.shape[-1] - self.nulls - 1

        def others(part: Tensor) -> Tensor:
            return torch.cat([part[..., :place], part[..., place + 1 :]], dim=-1)

        if place == 0:
            alone = torch.zeros_like(logits.select, dtype=torch.bool)
            alone[:, 0] = True
            return RoutingDecision(gates=self.share * alone.to(logits.weight), selected=alone)
        forced = None if logits.forced is None else others(logits.forced)
        inner = self.inner(Logits(others(logits.select), others(logits.weight), forced), ctx)

        def with_complement(part: Tensor, value: float | bool) -> Tensor:
            return torch.cat([part[:, :place], torch.full_like(part[:, :1], value), part[:, place:]], dim=1)

        return RoutingDecision(
            gates=with_complement(inner.gates, self.share), selected=with_complement(inner.selected, True)
        )
