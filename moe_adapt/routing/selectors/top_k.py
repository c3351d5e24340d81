"""Top-k selector: the `k` experts with the largest logits. Ties go to the lower index."""

import torch
from torch import Tensor

from moe_adapt.errors import UserError
from moe_adapt.routing.base import SELECTORS, Logits, RoutingDecision, Selector
from moe_adapt.routing.context import RouteContext
from moe_adapt.routing.softmax import softmax

__all__ = ["TopKSelector", "top_k_mask"]


def top_k_mask(values: Tensor, k: int) -> Tensor:
    """Return where the `k` largest values of each row are, bool [N, E]; ties go to the lower index.

    Args:
        values: [N, E].
        k: At least 1, at most `E`.

    >>> top_k_mask(torch.tensor([[0.5, 2.0, 2.0, 1.0]]), 2)
    tensor([[False,  True,  True, False]])
    """
    selected = torch.zeros_like(values, dtype=torch.bool)
    if k > 2:  # from here on sorting is cheaper
        best = values.sort(dim=-1, descending=True, stable=True).indices[..., :k]
        return selected.scatter_(-1, best, True)
    first = values.argmax(dim=-1, keepdim=True)
    selected.scatter_(-1, first, True)
    if k == 2:
        second = values.masked_fill(selected, -torch.inf).argmax(dim=-1, keepdim=True)
        selected.scatter_(-1, second, True)
    return selected


@SELECTORS.register("top_k")
class TopKSelector(Selector):
    """Keeps the `k` largest select logits per token; one of minus infinity is never kept.

    Args:
        k: Experts kept per token, `K`. With one expert at a site, that one is kept. Higher: more experts per
            token, gates spread over more of them.
        renormalize: Whether the gates of the kept experts sum to one (a softmax over them); otherwise each
            keeps its probability among all experts.

    Raises:
        UserError: If `k` is less than one.
    """

    reference = "Shazeer et al. 2017, arXiv 1701.06538"

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
        kept = min(k, logits.select.shape[-1])
        return self.gated(logits, top_k_mask(logits.select, kept) & (logits.select > -torch.inf))

    def gated(self, logits: Logits, selected: Tensor) -> RoutingDecision:
        """Return the decision for a selection, bool [N, E]."""
        if self.renormalize:
            gates = softmax(logits.weight.masked_fill(~selected, float("-inf")))
        else:
            gates = softmax(logits.weight) * selected
        return RoutingDecision(gates=gates, selected=selected)
