r"""Recurrent scorer: routers know what the routers of earlier layers saw (RMoE).

A token's state runs through the depth of the model. Layer `l` projects its input, `u_l = P_l x`, updates the
state with one gated recurrent unit for all layers, `h_l = GRU(u_l, h_{l-1})` with `h_0 = 0`, and scores
`z_l = R_l h_l`. There is nothing between tokens: permuting them permutes the logits.

The order of the layers is that of their calls. Layers on other numbers of tokens, such as those on pooled
vectors, have a chain of their own. The states of all layers stay in memory until the next forward, `N width`
numbers each, under gradient checkpointing too.

Departure: the paper's width of 256 is for its own models; a small width costs few parameters, and `z` starts
small. With 3 x 10^5 numbers the paper's unit would be larger than many adapters.

Reference: Qiu et al., "Layerwise Recurrent Router for Mixture-of-Experts", arXiv 2408.06793.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_adapt.errors import UserError
from moe_adapt.experts import ExpertBank
from moe_adapt.routing.base import SCORERS, Scorer
from moe_adapt.routing.context import RouteContext

__all__ = ["RecurrentScorer"]


@SCORERS.register("recurrent")
class RecurrentScorer(Scorer):
    """Scores from a state that one recurrent unit carries through all layers.

    Args:
        in_features: Width of the tokens, `d`.
        num_experts: Number of experts, `E`.
        width: Width of the state. Higher: more memory of earlier layers, `width (d + E)` parameters per layer
            and `6 width^2` once.

    Raises:
        UserError: If the width is less than one.
    """

    reference = "RMoE, Qiu et al. 2024, arXiv 2408.06793"

    common = ("unit",)

    def __init__(self, in_features: int, num_experts: int, width: int = 32) -> None:
        super().__init__()
        if width < 1:
            raise UserError(f"the recurrent router's width is at least 1, got {width}.")
        self.down = nn.Parameter(torch.empty(width, in_features))
        self.up = nn.Parameter(torch.empty(num_experts, width))
        for weight in (self.down, self.up):
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
        self.unit = nn.GRUCell(width, width)

    def forward(self, x: Tensor, ctx: RouteContext, bank: ExpertBank) -> Tensor:
        """Return logits from the state after this layer, [N, E]."""
        inputs = F.linear(x.to(self.down.dtype), self.down)
        state = ctx.pass_on("recurrent", len(x), lambda before: self.unit(inputs, before))
        return F.linear(state, self.up)
