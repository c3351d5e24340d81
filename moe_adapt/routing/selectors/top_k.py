"""Top-k selector: the `k` experts with the largest logits. Ties go to the lower index."""

import torch

from moe_adapt.errors import UserError
from moe_adapt.routing.base import SELECTORS, Logits, RoutingDecision, Selector
from moe_adapt.routing.context import RouteContext

__all__ = ["TopKSelector"]


@SELECTORS.register("top_k")
class TopKSelector(Selector):
    """Keeps the `k` largest select logits per token; one of minus infinity is never kept.

    Args:
        k: Experts kept per token, `K`. With one expert at a site, that one is kept.
        renormalize: Whether the gates of the kept experts sum to one (a softmax over them); otherwise each
            keeps its probability among all experts.

    Raises:
        UserError: If `k` is less than one.
    """

    def __init__(self, k: int = 2, renormalize: bool = True) -> None:
        super().__init__()
        if k < 1:
            raise UserError(f"top-k keeps at least one expert, got k={k}.")
        self.k = k
        self.renormalize = renormalize

    def slots(self, num_experts: int) -> int:
        """Return `k`, or the number of experts if that is less."""
        return min(self.k, num_experts)

    def forward(self, logits: Logits, ctx: RouteContext) -> RoutingDecision:
        """Return gates that are zero outside the `k` best, [N, E]."""
        return self.choose(logits, self.k)

    def choose(self, logits: Logits, k: int) -> RoutingDecision:
        """Return the decision for the `k` best, or for all if there are fewer."""
        best = logits.select.sort(dim=-1, descending=True, stable=True).indices[..., :k]
        selected = torch.zeros_like(logits.select, dtype=torch.bool).scatter_(-1, best, True)
        selected &= logits.select > -torch.inf
        if self.renormalize:
            gates = logits.weight.masked_fill(~selected, float("-inf")).softmax(dim=-1)
        else:
            gates = logits.weight.softmax(dim=-1) * selected
        return RoutingDecision(gates=gates, selected=selected)
