"""Score top-k: the `k` largest positive scores are the gates themselves, neither squashed nor renormalised.

For routers whose logits are scores already, such as ``norm_router``. An expert without a positive score is
not selected, so a token may get fewer than `k`, or none.

Reference: Huang et al., "UniPool: A Globally Shared Expert Pool for Mixture-of-Experts", arXiv 2605.06665.
"""

from torch import Tensor

from moe_adapt.errors import UserError
from moe_adapt.routing.base import SELECTORS, Logits, RoutingDecision, Selector
from moe_adapt.routing.context import RouteContext
from moe_adapt.routing.selectors.top_k import top_k_mask

__all__ = ["ScoreTopKSelector"]


@SELECTORS.register("score_top_k")
class ScoreTopKSelector(Selector):
    """Keeps the `k` largest positive scores per token, as they are.

    Args:
        k: Experts kept per token, `K`. Higher: more experts per token.

    Raises:
        UserError: If `k` is less than one.
    """

    reference = "UniPool, Huang et al. 2026, arXiv 2605.06665"
    unit_gate_for_one_expert = False

    def __init__(self, k: int = 1) -> None:
        super().__init__()
        if k < 1:
            raise UserError(f"score_top_k keeps at least one expert, got k={k}.")
        self.k = k

    def slots(self, num_experts: int) -> int:
        """Return `k`, or the number of experts if that is less."""
        return min(self.k, num_experts)

    def forward(self, logits: Logits, ctx: RouteContext) -> RoutingDecision:
        """Return the scores where they are kept and zero elsewhere, [N, E]."""
        kept: Tensor = top_k_mask(logits.select, min(self.k, logits.select.shape[-1]))
        selected = kept & (logits.select > 0)
        return RoutingDecision(gates=logits.weight.masked_fill(~selected, 0.0), selected=selected)
