"""Random fixed scorer: pseudo-random logits that depend on the token id and a seed, and on nothing else.

The control that no router was learned: with `top_k` a token id always gets the same `K` random experts, with
the same gates, in any batch and at every layer. Nothing is stored: the logits are an integer hash of (seed,
token id, expert), uniform in [0, 1), equal on every device. For two experts the gates lie between 0.27 and
0.73. The model must be called with `input_ids` (see `moe_adapt.routing.scorers.hash`).
"""

from typing import TypeVar

import torch
from torch import Tensor

from moe_adapt.experts import ExpertBank
from moe_adapt.routing.base import SCORERS, Scorer
from moe_adapt.routing.context import RouteContext

__all__ = ["RandomFixedScorer", "mix"]

_LOW = 0xFFFFFFFF

T = TypeVar("T", int, Tensor)


def mix(value: T) -> T:
    """Return a well-mixed 32-bit hash of int64 numbers in [0, 2^32), elementwise; no product overflows.

    >>> mix(torch.arange(3)).unique().numel()
    3
    """
    value = ((value ^ (value >> 16)) * 0x21F0AAAD) & _LOW
    value = ((value ^ (value >> 15)) * 0x735A2D97) & _LOW
    return value ^ (value >> 15)


@SCORERS.register("random_fixed")
class RandomFixedScorer(Scorer):
    """Scores each token id with fixed random numbers, without parameters.

    Args:
        num_experts: Number of experts, `E`.
        seed: Another seed gives another assignment.
    """

    reference = "no paper: a control without a learned router"

    def __init__(self, num_experts: int, seed: int = 0) -> None:
        super().__init__()
        self.num_experts = num_experts
        self.seed = seed

    def forward(self, x: Tensor, ctx: RouteContext, bank: ExpertBank) -> Tensor:
        """Return logits in [0, 1), [N, E].

        Raises:
            UserError: If the tokens have no ids.
        """
        if self.num_experts == 1:
            return x.new_zeros(x.shape[0], 1)
        ids = ctx.flat_input_ids(x.shape[:-1]).to(x.device, torch.int64)
        experts = torch.arange(1, self.num_experts + 1, device=x.device)
        key = mix((ids & _LOW) ^ mix(self.seed & _LOW))
        bits = mix(key.unsqueeze(-1) ^ mix(experts))
        return (bits >> 8).to(x.dtype) * 2.0**-24
