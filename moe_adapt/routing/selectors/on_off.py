r"""On-off selector: the `k` best experts with gate 1, the others with gate 0.

What is added up is the experts as they are, so that slices of one LoRA (bank kind `slices`) give exactly that
LoRA where all are on. A step has no gradient; each gate of a kept expert passes that of its probability on
(straight through):

$$g_e = [e \in \mathrm{top}_k]\,\bigl(1 + p_e - \mathrm{sg}(p_e)\bigr)$$

Departure: the paper weights what its experts give; a weight would change the LoRA that slices make up.

Reference: Yang et al., "Union of Experts: Adapting Hierarchical Routing to Equivalently Decomposed
Transformer", 2025, arXiv 2503.02495; Bengio et al., "Estimating or Propagating Gradients Through Stochastic
Neurons", 2013, arXiv 1308.3432.
"""

from moe_adapt.errors import UserError
from moe_adapt.routing.base import SELECTORS, Logits, RoutingDecision, Selector
from moe_adapt.routing.context import RouteContext
from moe_adapt.routing.selectors.top_k import top_k_mask
from moe_adapt.routing.softmax import softmax

__all__ = ["OnOffSelector"]


@SELECTORS.register("on_off")
class OnOffSelector(Selector):
    """Switches the `k` experts with the largest logits on, with gate 1.

    Args:
        k: Experts per token. Higher: more of the whole, less to choose.

    Raises:
        UserError: If `k` is less than one.
    """

    reference = "Union of Experts, Yang et al. 2025, arXiv 2503.02495"

    def __init__(self, k: int = 2) -> None:
        super().__init__()
        if k < 1:
            raise UserError(f"on_off switches at least one expert on, got k={k}.")
        self.k = k

    def slots(self, num_experts: int) -> int:
        """Return `k`, or the number of experts if that is less."""
        return min(self.k, num_experts)

    def forward(self, logits: Logits, ctx: RouteContext) -> RoutingDecision:
        """Return gates of ones and zeros, [N, E]."""
        selected = top_k_mask(logits.select, self.slots(logits.select.shape[-1]))
        probs = softmax(logits.weight)
        return RoutingDecision(selected * (1 + (probs - probs.detach())), selected)
