"""DynMoLE's entropy-switched selector: top-p for tokens the router is sure about, all experts for the others.

Per token, with `p = softmax(z)` and `S` the normalised Tsallis entropy of `p + eps`: if `S >
entropy_threshold` all experts are kept, otherwise those of exclusive top-p and at least `keep_top_k`. Gates
are `p` masked, not renormalised, so a sparse token's update is smaller than a dense one's.

The preset follows the authors' released code (order 1.1, threshold 0.9, top-p 0.75, keep 2, eps 1e-5); the
body of the paper was not available to us. `inclusive` and `renormalize` are our options.

Reference: DynMoLE, arXiv 2504.00661.
"""

import torch

from moe_adapt.routing.base import SELECTORS, Logits, RoutingDecision, Selector
from moe_adapt.routing.context import RouteContext
from moe_adapt.routing.entropy import EntropyKind, check_entropy, routing_entropy
from moe_adapt.routing.selectors.top_p import check_top_p, top_p_mask
from moe_adapt.routing.softmax import softmax

__all__ = ["DynMoleSelector"]


@SELECTORS.register("dynmole")
class DynMoleSelector(Selector):
    """Chooses between top-p and dense routing by the entropy of the router.

    Args:
        top_p: Mass that sparse tokens gather, in (0, 1]. Higher: more experts for sparse tokens.
        keep_top_k: The least number of experts that a sparse token keeps.
        entropy_threshold: Normalised entropy above which a token uses all experts; above 1 switches that off.
            Higher: fewer tokens use all experts.
        q: Order of the entropy; 1 is Shannon's.
        eps: Added to the probabilities in the entropy.
        inclusive: Whether the expert that crosses `top_p` is kept (the released code drops it).
        renormalize: Whether gates sum to one (in the released code they do not).
        entropy: Tsallis entropy, or Rényi's, which the authors name as an alternative.

    Raises:
        UserError: If an option is out of range.
    """

    reference = "DynMoLE, arXiv 2504.00661"

    def __init__(
        self,
        top_p: float = 0.75,
        keep_top_k: int = 2,
        entropy_threshold: float = 0.9,
        q: float = 1.1,
        eps: float = 1e-5,
        inclusive: bool = False,
        renormalize: bool = False,
        entropy: EntropyKind = "tsallis",
    ) -> None:
        super().__init__()
        check_top_p(top_p, keep_top_k)
        check_entropy(q, entropy)
        self.entropy: EntropyKind = entropy
        self.top_p = top_p
        self.keep_top_k = keep_top_k
        self.entropy_threshold = entropy_threshold
        self.q = q
        self.eps = eps
        self.inclusive = inclusive
        self.renormalize = renormalize

    def forward(self, logits: Logits, ctx: RouteContext) -> RoutingDecision:
        """Return masked softmax gates, [N, E]."""
        probs = softmax(logits.weight)
        with torch.no_grad():
            choice = probs.detach() if logits.select is logits.weight else softmax(logits.select)
            dense = routing_entropy(choice + self.eps, self.q, self.entropy) > self.entropy_threshold
            selected = top_p_mask(choice, self.top_p, self.keep_top_k, self.inclusive) | dense.unsqueeze(-1)
        gates = probs * selected
        if self.renormalize:
            gates = gates / gates.sum(dim=-1, keepdim=True)
        return RoutingDecision(gates=gates, selected=selected)
