"""Sampled selector: experts drawn from the router's probabilities while training, the best ones afterwards.

`K` experts are drawn without replacement (Gumbel noise on the logits, then the `K` largest); the gates are
those of top-k over the experts drawn. It is what a reward can teach a router: the procedure ``gate_policy``
compares draws that did well with draws that did not, and runs a draw again with `RouteContext.replayed`.

Reference: MoE-GRPO draws experts multinomially; Kool et al., "Stochastic Beams and Where to Find Them", arXiv
1903.06059, for sampling without replacement.
"""

import torch
from torch import Tensor

from moe_adapt.routing.base import SELECTORS, Logits, RoutingDecision
from moe_adapt.routing.context import RouteContext
from moe_adapt.routing.selectors.top_k import TopKSelector, top_k_mask

__all__ = ["SampledSelector"]


def gumbel(like: Tensor) -> Tensor:
    """Return standard Gumbel noise of the shape of `like`."""
    uniform = torch.rand_like(like).clamp(min=torch.finfo(like.dtype).tiny)
    return -(-uniform.log()).clamp(min=torch.finfo(like.dtype).tiny).log()


@SELECTORS.register("sampled")
class SampledSelector(TopKSelector):
    """Draws `k` experts per token while training; keeps the `k` most probable in evaluation.

    Args:
        k: Experts per token, `K`. Higher: more experts per token, draws closer to all of them.
        renormalize: Whether the gates of the kept experts sum to one.
    """

    reference = "Kool et al. 2019, arXiv 1903.06059"

    def forward(self, logits: Logits, ctx: RouteContext) -> RoutingDecision:
        """Return gates that are zero outside the draw, [N, E]; a recomputation has the same draw."""
        if not ctx.training:
            return self.choose(logits, self.k)
        selected = ctx.replayed()
        if selected is None:
            noise = ctx.draw(lambda: gumbel(logits.select.detach()), name="sampled")
            selected = top_k_mask(logits.select.detach() + noise, min(self.k, logits.select.shape[-1]))
        return self.gated(logits, selected & (logits.select > -torch.inf))
