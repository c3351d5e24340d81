"""Top-p selector: as many experts as it takes to gather the probability mass `p`.

The paper takes `p = 0.4`, keeps the expert that crosses it, and gives each kept expert its raw probability:
the preset ``top_p``. The preset ``nucleus`` is ours: `p = 0.75`, gates that sum to one.

Reference: Huang et al., "Harder Tasks Need More Experts: Dynamic Routing in MoE Models", arXiv 2403.07652.
"""

import torch
from torch import Tensor

from moe_adapt.errors import UserError
from moe_adapt.routing.base import SELECTORS, Logits, RoutingDecision, Selector
from moe_adapt.routing.context import RouteContext
from moe_adapt.routing.softmax import softmax

__all__ = ["TopPSelector", "check_top_p", "top_p_mask"]


def top_p_mask(probs: Tensor, p: float, keep_top_k: int, inclusive: bool) -> Tensor:
    """Return which experts top-p keeps, bool [N, E].

    Args:
        probs: Router probabilities, [N, E].
        p: Mass to gather, in (0, 1].
        keep_top_k: The least number of experts to keep.
        inclusive: Whether the expert with which the mass first exceeds `p` is kept (nucleus sampling) or
            dropped.

    >>> probs = torch.tensor([[0.5, 0.3, 0.15, 0.05]])
    >>> top_p_mask(probs, 0.75, keep_top_k=1, inclusive=True).sum().item()
    2
    >>> top_p_mask(probs, 0.75, keep_top_k=1, inclusive=False).sum().item()
    1
    """
    ranked, order = probs.sort(dim=-1, descending=True, stable=True)
    mass = ranked.cumsum(dim=-1)
    keep = (mass - ranked < p) if inclusive else (mass <= p)
    keep[..., :keep_top_k] = True
    return torch.zeros_like(keep).scatter_(-1, order, keep)


def check_top_p(p: float, keep_top_k: int) -> None:
    """Raise `UserError` unless `p` is in (0, 1] and `keep_top_k` is at least one."""
    if not 0 < p <= 1:
        raise UserError(f"top_p is a probability mass in (0, 1], got {p}.")
    if keep_top_k < 1:
        raise UserError(
            f"keep_top_k is at least 1, so that no token is left without an expert, got {keep_top_k}."
        )


@SELECTORS.register("top_p")
class TopPSelector(Selector):
    """Keeps the most probable experts until their mass reaches `top_p`.

    Args:
        top_p: Mass to gather, in (0, 1]. Higher: more experts per token.
        keep_top_k: The least number of experts to keep. Higher: more experts for tokens the router is sure
            about.
        inclusive: Whether the expert that crosses `top_p` is kept, as in nucleus sampling.
        renormalize: Whether the gates of the kept experts sum to one.

    Raises:
        UserError: If an option is out of range.
    """

    reference = "Huang et al. 2024, arXiv 2403.07652"

    def __init__(
        self, top_p: float = 0.75, keep_top_k: int = 1, inclusive: bool = True, renormalize: bool = True
    ) -> None:
        super().__init__()
        check_top_p(top_p, keep_top_k)
        self.top_p = top_p
        self.keep_top_k = keep_top_k
        self.inclusive = inclusive
        self.renormalize = renormalize

    def forward(self, logits: Logits, ctx: RouteContext) -> RoutingDecision:
        """Return gates that are zero outside the kept experts, [N, E]."""
        with torch.no_grad():
            selected = top_p_mask(softmax(logits.select), self.top_p, self.keep_top_k, self.inclusive)
        gates = softmax(logits.weight) * selected
        if self.renormalize:
            gates = gates / gates.sum(dim=-1, keepdim=True)
        return RoutingDecision(gates=gates, selected=selected)
