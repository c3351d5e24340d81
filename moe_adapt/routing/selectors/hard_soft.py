"""LoRA-Mixer's hard-soft routing: experts by label first, then all of them, at inference the best few.

* hard (training, until a share of the steps): each sample's tokens go to the expert of its domain, gate 1;
  expert `i` belongs to domain `i`. The model is called with ``domain_ids`` [B], which the tuner takes out of
  its inputs. A sample of domain -1 is routed softly.
* soft (training, afterwards): every expert, weighted by its probability; differentiable.
* inference: the `k` most probable, their weights renormalised (whether the paper does that is not known). A
  domain that the caller knows wins here too, after label-driven training (`known_at_test`); leave it out of
  the batch to measure the router.

Decisions by label are no subject of auxiliary losses. The stage depends on the tuner's `progress`, which our
Lightning modules keep; where nobody sets it, training is soft from the start.

The paper's "differentiable top-k" is, as far as it is documented, exactly this; no straight-through or Gumbel
estimator occurs. The gap between soft training and sparse inference is real: report accuracy with both.

Reference: LoRA-Mixer, arXiv 2507.00029.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from moe_adapt.errors import UserError
from moe_adapt.routing.base import SELECTORS, Logits, RoutingDecision
from moe_adapt.routing.context import RouteContext
from moe_adapt.routing.selectors.top_k import TopKSelector

__all__ = ["HardSoftSelector"]


@SELECTORS.register("hard_soft")
class HardSoftSelector(TopKSelector):
    """Routes by label, then softly, and sparsely at inference.

    Args:
        k: Experts kept per token at inference. Higher: closer to the soft training, less sparse.
        hard_until: Share of the optimizer steps that route by label, in [0, 1]. Higher: experts that differ
            more by domain, fewer steps for the router.
        renormalize: Whether the gates at inference sum to one.
        known_at_test: Whether `domain_ids` at inference choose the expert, if there was a hard stage.

    Raises:
        UserError: If an option is out of range.
    """

    reference = "LoRA-Mixer, arXiv 2507.00029"

    def __init__(
        self, k: int = 3, hard_until: float = 0.5, renormalize: bool = True, known_at_test: bool = True
    ) -> None:
        super().__init__(k, renormalize)
        if not 0 <= hard_until <= 1:
            raise UserError(f"hard_until is a share of the steps in [0, 1], got {hard_until}.")
        self.hard_until, self.known_at_test = hard_until, known_at_test

    def slots(self, num_experts: int) -> None:  # type: ignore[override]
        """Return None: in training all experts have a gate."""

    def forward(self, logits: Logits, ctx: RouteContext) -> RoutingDecision:
        """Return one-hot, dense or top-k gates, [N, E].

        Raises:
            UserError: In the hard stage, if domains are missing or more than the experts.
        """
        if not ctx.training:
            routed = super().forward(logits, ctx)
            if ctx.domain_ids is None or not self.known_at_test or self.hard_until == 0:
                return routed
            return self._by_label(ctx, routed)
        gates = logits.weight.softmax(dim=-1)
        everyone = torch.ones_like(gates, dtype=torch.bool)
        if ctx.progress >= self.hard_until or gates.shape[-1] == 1:
            return RoutingDecision(gates, everyone)
        return self._by_label(ctx, RoutingDecision(gates, everyone))

    def _by_label(self, ctx: RouteContext, other: RoutingDecision) -> RoutingDecision:
        """Return the experts of the samples' domains, and another decision where there is none."""
        domains = self._domains(ctx, *other.gates.shape)
        labelled = (domains >= 0).unsqueeze(-1)
        own = F.one_hot(domains.clamp(min=0), other.gates.shape[-1]).bool()
        ctx.decided_by_label.add(ctx.site)
        return RoutingDecision(
            gates=torch.where(labelled, own.to(other.gates.dtype), other.gates),
            selected=torch.where(labelled, own, other.selected),
        )

    @staticmethod
    def _domains(ctx: RouteContext, tokens: int, experts: int) -> Tensor:
        domains = ctx.flat_domain_ids(tokens)
        if domains is None:
            raise UserError(
                "the hard stage of LoRA-Mixer routes by label: call the model with domain_ids [B] (data "
                "modules take them from domain_column), or set the selector's hard_until to 0."
            )
        if int(domains.max()) >= experts:
            raise UserError(
                f"domain {int(domains.max())} has no expert: {ctx.site[1]!r} has {experts}; set num_experts "
                "to the number of domains."
            )
        return domains
