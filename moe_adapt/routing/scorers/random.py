"""Random scorer: one expert drawn anew in every training forward, with no router at all (THOR).

    training:   logit 0 for the expert drawn, a logit whose softmax is exactly 0 for the others
    evaluation: logit 0 for all, so that a selector by mass averages them; or one expert per token id

An expert is drawn per site for the whole batch, as published, or for each sequence or token. Experts that
any input may meet are trained to agree, which the procedure ``two_pass`` asks of two draws.

Departure: the authors evaluate with an expert drawn at random per token or sentence. A prediction that
depends on a draw or on its batch is no use to anybody, so here the mean of all experts answers, or a fixed
expert per token id (``evaluation="token"``, the pseudo-random choice of `random_fixed`).

Reference:
    Zuo et al., "Taming Sparsely Activated Transformer with Stochastic Experts", arXiv 2110.04260; code
    microsoft/Stochastic-Mixture-of-Experts.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from moe_adapt.errors import UserError
from moe_adapt.experts import ExpertBank
from moe_adapt.routing.base import SCORERS, Scorer
from moe_adapt.routing.context import RouteContext
from moe_adapt.routing.scorers.random_fixed import mix

__all__ = ["RandomScorer"]

Level = Literal["batch", "sequence", "token"]
Evaluation = Literal["mean", "token"]
#: Low enough that a softmax beside 0 is exactly 0, and finite.
OUT = -1e4


@SCORERS.register("random")
class RandomScorer(Scorer):
    """Draws an expert while training, without parameters; the same draw when checkpointing runs a site again.

    Args:
        num_experts: Number of experts, `E`.
        level: What shares a draw: the whole batch, a sequence, or nothing (each token has its own).
        evaluation: Who answers: the mean of all experts, or one expert per token id.

    Raises:
        UserError: If `level` or `evaluation` is none of these.
    """

    reference = "THOR, Zuo et al. 2022, arXiv 2110.04260"

    def __init__(self, num_experts: int, level: Level = "batch", evaluation: Evaluation = "mean") -> None:
        super().__init__()
        for name, value, known in (("level", level, Level), ("evaluation", evaluation, Evaluation)):
            if value not in get_args(known):
                raise UserError(f"{name} is one of {', '.join(get_args(known))}, got {value!r}.")
        self.num_experts = num_experts
        self.level = level
        self.evaluation = evaluation

    def forward(self, x: Tensor, ctx: RouteContext, bank: ExpertBank) -> Tensor:
        """Return logits that are 0 for the experts in use, [N, E].

        Raises:
            UserError: If sequences or token ids are asked for and the model got none.
        """
        tokens = len(x)
        if self.num_experts == 1 or (not ctx.training and self.evaluation == "mean"):
            return x.new_zeros(tokens, self.num_experts)
        if not ctx.training:
            ids = ctx.flat_input_ids(x.shape[:-1]).to(x.device, torch.int64)
            chosen = mix(ids & 0xFFFFFFFF) % self.num_experts
        else:
            groups = ctx.num_samples(tokens) if self.level == "sequence" else 1
            draws = tokens if self.level == "token" else groups
            drawn = ctx.draw(
                lambda: torch.randint(self.num_experts, (draws,), device=x.device), name="random"
            )
            chosen = drawn if self.level == "token" else drawn.repeat_interleave(tokens // groups)
        out = x.new_full((tokens, self.num_experts), OUT)
        return out.scatter_(1, chosen[:, None], 0.0)
