"""Hash scorer: a token goes to the expert `token id mod E`. The control without any learned routing.

Use it with `top_k` and `k = 1`, as the preset `hash` does. The model must be called with `input_ids`, and the
adapted layers must see one vector per token id: pooled vectors, image patches and the decoder of an
encoder-decoder model have none.

Reference: Roller et al., "Hash Layers For Large Sparse Models", arXiv 2106.04426 (there balanced or random
tables; the remainder is our choice).
"""

import torch
from torch import Tensor

from moe_adapt.experts import ExpertBank
from moe_adapt.routing.base import SCORERS, Scorer
from moe_adapt.routing.context import RouteContext

__all__ = ["HashScorer"]


@SCORERS.register("hash")
class HashScorer(Scorer):
    """Scores 1 for the expert `token id mod E` and 0 for the others, without parameters.

    Args:
        num_experts: Number of experts, `E`.
    """

    reference = "Hash Layers, Roller et al. 2021, arXiv 2106.04426"

    def __init__(self, num_experts: int) -> None:
        super().__init__()
        self.num_experts = num_experts

    def forward(self, x: Tensor, ctx: RouteContext, bank: ExpertBank) -> Tensor:
        """Return one-hot rows, [N, E].

        Raises:
            UserError: If the tokens have no ids.
        """
        if self.num_experts == 1:
            return x.new_zeros(x.shape[0], 1)
        ids = ctx.flat_input_ids(x.shape[:-1]).to(x.device)
        experts = torch.arange(self.num_experts, device=x.device)
        return (ids.unsqueeze(-1) % self.num_experts == experts).to(x.dtype)
