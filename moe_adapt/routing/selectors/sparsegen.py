r"""Sparsegen selector: gates are the point of the simplex nearest to the logits, which has exact zeros.

$$p = \arg\min_{p \in \Delta} \|p - u\|^2 - \lambda \|p\|^2 = \text{sparsemax}(u / (1 - \lambda)),
\qquad \lambda < 1$$

The number of experts varies per token, is at least one, and is differentiable in the gates: `lam` towards 1
keeps one expert, `lam` towards minus infinity all of them with equal gates, `lam = 0` is sparsemax.

LD-MoLE predicts `lam` per token with a network that all sites share and can steer it to a wanted number of
experts; here `lam` is a constant. Its balance loss has weight 1.

Reference: LD-MoLE, arXiv 2509.25684; Laha et al., "On Controllable Sparse Alternatives to Softmax", arXiv
1810.11975; Martins and Astudillo, "From Softmax to Sparsemax", arXiv 1602.02068.
"""

import torch
from torch import Tensor

from moe_adapt.errors import UserError
from moe_adapt.routing.base import SELECTORS, Logits, RoutingDecision, Selector
from moe_adapt.routing.context import RouteContext

__all__ = ["SparsegenSelector", "sparsemax"]


def sparsemax(logits: Tensor) -> Tensor:
    """Return the projection of each row onto the simplex, differentiable; `-inf` gives zero.

    Args:
        logits: [..., E], at least one finite per row.

    >>> sparsemax(torch.tensor([[1.0, 0.5, -1.0]]))
    tensor([[0.7500, 0.2500, 0.0000]])
    """
    logits = logits - logits.detach().amax(dim=-1, keepdim=True)
    ranked = logits.sort(dim=-1, descending=True).values
    mass = ranked.cumsum(dim=-1)
    rank = torch.arange(1, logits.shape[-1] + 1, device=logits.device)
    size = (1 + rank * ranked > mass).sum(dim=-1, keepdim=True)
    threshold = (mass.gather(-1, size - 1) - 1) / size
    return (logits - threshold).relu()


@SELECTORS.register("sparsegen")
class SparsegenSelector(Selector):
    """Keeps the experts with a positive gate in `sparsemax(z / (1 - lam))`.

    Where select and weight logits differ, the former decide which experts may get a gate.

    Args:
        lam: Sparsity, below 1; larger keeps fewer experts.

    Raises:
        UserError: If `lam` is not below 1.
    """

    reference = "LD-MoLE, arXiv 2509.25684; sparsegen, Laha et al. 2018, arXiv 1810.11975"

    def __init__(self, lam: float = 0.0) -> None:
        super().__init__()
        if not lam < 1:
            raise UserError(f"sparsegen's lam is below 1, got {lam}.")
        self.lam = lam

    def forward(self, logits: Logits, ctx: RouteContext) -> RoutingDecision:
        """Return sparse gates that sum to one, [N, E]."""
        weight = logits.weight / (1 - self.lam)
        if logits.select is not logits.weight:
            with torch.no_grad():
                allowed = sparsemax(logits.select / (1 - self.lam)) > 0
            weight = weight.masked_fill(~allowed, float("-inf"))
        gates = sparsemax(weight)
        return RoutingDecision(gates=gates, selected=gates.detach() > 0)
