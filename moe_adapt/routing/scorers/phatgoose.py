r"""PHATGOOSE scorer: experts that were trained apart, each with a gate vector that was trained for it alone.

$$z_e = \mathrm{LN}(x) \cdot \frac{v_e}{\lVert v_e \rVert} / \sqrt d$$

with a LayerNorm without weights. No expert's logit depends on another expert, so appending or removing one
leaves the others' logits as they are, to the last bit: every row is a product of its own. The gate vectors
come from `moe_adapt.hub.gates.train_gate`; rows of zeros score zero.

Reference: Muqeeth et al., "Learning to Route Among Specialized Experts for Zero-Shot Generalization",
arXiv 2402.05859. Glider (Li et al., arXiv 2410.07172) adds a score per sample: the modifier
`sample_score`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_adapt.experts import ExpertBank
from moe_adapt.routing.base import SCORERS, Scorer
from moe_adapt.routing.context import RouteContext

__all__ = ["PhatgooseScorer"]


@SCORERS.register("phatgoose")
class PhatgooseScorer(Scorer):
    """Scores by independent gate vectors.

    Args:
        in_features: Width of the tokens, `d`.
        num_experts: Number of experts, `E`.
    """

    reference = "PHATGOOSE, Muqeeth et al. 2024, arXiv 2402.05859"

    def __init__(self, in_features: int, num_experts: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_experts, in_features))

    def forward(self, x: Tensor, ctx: RouteContext, bank: ExpertBank) -> Tensor:
        """Return logits, [N, E]."""
        tokens = F.layer_norm(x, x.shape[-1:]) / x.shape[-1] ** 0.5
        rows = F.normalize(self.weight.to(x.dtype), dim=-1)
        return torch.stack([tokens @ row for row in rows], dim=-1)
