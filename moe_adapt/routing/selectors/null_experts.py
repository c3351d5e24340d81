"""Null experts: top-k over `E` experts and some empty ones, so that easy tokens use fewer experts, or none.

The scorer gives `E + nulls` logits; the last `nulls` stand for "no expert". Of the `k` best, only the true
experts count: their gates are a softmax over them. A token that picks only null experts keeps exactly the
output of the base layer. Under a balanced load a token uses `k E / (E + nulls)` true experts on average.

Records and losses see all `E + nulls` columns, with gate zero for null experts. `load_balance` treats null
experts as interchangeable: each counts with their mean share.

Reference: Zeng et al., "AdaMoE: Token-Adaptive Routing with Null Experts", arXiv 2406.13233.
"""

import torch

from moe_adapt.errors import UserError
from moe_adapt.routing.base import SELECTORS, Logits, RoutingDecision, Selector
from moe_adapt.routing.context import RouteContext
from moe_adapt.routing.softmax import softmax

__all__ = ["NullExpertsSelector"]


@SELECTORS.register("null_experts")
class NullExpertsSelector(Selector):
    """Keeps the true experts among the `k` largest of `E + nulls` logits; none is legal.

    Args:
        k: Experts picked per token, null ones included. Higher: more true experts per token.
        nulls: Number of null experts. Higher: fewer true experts per token.

    Raises:
        UserError: If `k` or `nulls` is less than one.
    """

    reference = "AdaMoE, Zeng et al. 2024, arXiv 2406.13233"

    unit_gate_for_one_expert = False

    def __init__(self, k: int = 4, nulls: int = 8) -> None:
        super().__init__()
        if k < 1 or nulls < 1:
            raise UserError(f"null_experts needs k and nulls of at least one, got k={k} and nulls={nulls}.")
        self.k = k
        self.nulls = nulls

    def forward(self, logits: Logits, ctx: RouteContext) -> RoutingDecision:
        """Return gates that are zero for null experts, [N, E + nulls]."""
        experts = logits.select.shape[-1] - self.nulls
        best = logits.select.sort(dim=-1, descending=True, stable=True).indices[..., : self.k]
        selected = torch.zeros_like(logits.select, dtype=torch.bool).scatter_(-1, best, True)
        kept = selected.clone()
        kept[..., experts:] = False
        some = kept.any(dim=-1, keepdim=True)
        weight = logits.weight.masked_fill(~kept & some, float("-inf"))
        return RoutingDecision(gates=softmax(weight) * kept, selected=selected)
