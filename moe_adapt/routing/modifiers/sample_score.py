r"""Sample score: what speaks for an expert in a whole sample is added to its logit for every token of it.

$$z_{te} \leftarrow z_{te} + \lambda\, s_{b(t)\,e}$$

with `s` [B, E] given from outside (`RoutingSession.sample_scores`), such as the cosine of the sample with
what an adapter is good at. In Glider `s` compares a written description of the adapter's task with the
sample's instruction; its scripts take `lambda` from 3 (held-out tasks of another collection) to 1,000. An
expert's logit depends on its own score alone, so appending or removing another leaves it as it was, to the
last bit.

Reference: Li et al., "GLIDER: Global and Local Instruction-Driven Expert Router", arXiv 2410.07172.
"""

import torch
from torch import Tensor

from moe_adapt.errors import UserError
from moe_adapt.routing.base import MODIFIERS, LogitModifier, Logits
from moe_adapt.routing.context import RouteContext

__all__ = ["SampleScore"]


@MODIFIERS.register("sample_score")
class SampleScore(LogitModifier):
    """Adds scaled scores of the samples; nothing if `scale` is 0.

    Args:
        num_experts: Number of columns, `E`.
        scale: Factor on the scores, `lambda`. Higher: the sample counts for more, the token for less.

    Attributes:
        columns: Which column of the scores each expert has, [E]; a layer may lack some adapters.
    """

    reference = "GLIDER, Li et al. 2024, arXiv 2410.07172"

    columns: Tensor

    reads_input = False

    def __init__(self, num_experts: int, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.register_buffer("columns", torch.arange(num_experts))

    def forward(self, logits: Logits, x: Tensor, ctx: RouteContext) -> Logits:
        """Return the logits with the scores of the tokens' samples.

        Raises:
            UserError: If there are no scores, or fewer columns than experts.
        """
        if self.scale == 0:
            return logits
        scores = ctx.flat_sample_scores(len(x))
        if scores is None or scores.shape[1] <= int(self.columns.max()):
            raise UserError(
                "the modifier 'sample_score' needs a score [B, E] of every sample and expert; run the model "
                "inside `with sample_scores(model, scores)` (moe_adapt.hub.pool.gates)."
            )
        added = self.scale * scores[:, self.columns].to(logits.weight)
        return logits._replace(select=logits.select + added, weight=logits.weight + added)
