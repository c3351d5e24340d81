r"""Top-k over a grid of experts whose logits are sums of a row's and a column's score.

For `z_{(i, j)} = u_i + v_j` the `k` best pairs lie in the `k` best rows and the `k` best columns: if `i` is
not among those, `k` rows do at least as well with the same column. So `k^2` candidates are ranked instead of
`E`: a quarter of them for 1,024 experts and `k = 16`. The largest logit of a row is its score but for a
constant, so that the logits are all this needs. It is exact for such logits and for no others: the
configuration takes it with the scorer `product_key` and without modifiers only.

Departure: in the release gates are probabilities among all experts, whose sum for `k` of a thousand starts
near zero, and a LoRA starts at zero already. Here they sum to one; `renormalize` is the choice.

Reference: Shi et al., "OmniMoE: An Efficient MoE by Orchestrating Atomic Experts at Scale", 2026, arXiv
2602.05711; Lample et al., "Large Memory Layers with Product Keys", 2019, arXiv 1907.05242.
"""

import math

import torch
from torch import Tensor

from moe_adapt.routing.base import SELECTORS, Logits, RoutingDecision
from moe_adapt.routing.context import RouteContext
from moe_adapt.routing.selectors.top_k import TopKSelector
from moe_adapt.routing.softmax import softmax

__all__ = ["ProductTopKSelector", "product_top_k"]


def _best(values: Tensor, k: int) -> Tensor:
    """Return where the `k` largest values of each row are, in ascending order, int [N, k]."""
    best = values.sort(dim=-1, descending=True, stable=True).indices[..., :k]
    return best.sort(dim=-1).values


def product_top_k(logits: Tensor, k: int) -> Tensor:
    """Return the `k` experts with the largest logits on a grid, int [N, k]; ties go to the lower index.

    Args:
        logits: Sums of a row's and a column's score, [N, E]; `E` that is no square counts as one row.
        k: At least 1, at most `E`.

    >>> u, v = torch.tensor([3.0, 0.0]), torch.tensor([1.0, 2.0])
    >>> product_top_k((u[:, None] + v).view(1, 4), 2)
    tensor([[0, 1]])
    """
    experts = logits.shape[-1]
    side = math.isqrt(experts)
    rows, columns = (side, side) if side * side == experts else (1, experts)
    grid = logits.unflatten(-1, (rows, columns))
    best_rows = _best(grid.amax(dim=-1), min(k, rows)) if len(logits) else logits.new_zeros(0, 1).long()
    best_columns = _best(grid.amax(dim=-2), min(k, columns))
    candidates = (best_rows.unsqueeze(-1) * columns + best_columns.unsqueeze(-2)).flatten(-2)
    return candidates.gather(-1, _best(logits.gather(-1, candidates), k))


@SELECTORS.register("product_top_k")
class ProductTopKSelector(TopKSelector):
    """Keeps the `k` best experts of a grid, found from the best rows and columns.

    Args:
        k: Experts kept per token, `K`. Higher: more experts per token, gates spread over more of them.
        renormalize: Whether the gates of the kept experts sum to one; otherwise each keeps its probability
            among all experts, as published.

    Raises:
        UserError: If `k` is less than one.
    """

    reference = "OmniMoE, Shi et al. 2026, arXiv 2602.05711"
    only_scorer = "product_key"

    def forward(self, logits: Logits, ctx: RouteContext) -> RoutingDecision:
        """Return gates that are zero outside the `k` best, [N, E]."""
        best = product_top_k(logits.select.detach(), self.slots(logits.select.shape[-1]))
        selected = torch.zeros_like(logits.select, dtype=torch.bool).scatter_(-1, best, True)
        if not self.renormalize:
            return RoutingDecision(softmax(logits.weight) * selected, selected)
        kept = softmax(logits.weight.gather(-1, best))
        return RoutingDecision(torch.zeros_like(logits.weight).scatter(-1, best, kept), selected)
