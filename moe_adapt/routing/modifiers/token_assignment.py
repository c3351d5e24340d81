r"""Token assignment guidance: while a new group of experts learns, keep old-looking tokens away from it.

In training each token is sent to one group only: tokens that look new (`moe_adapt.routing.token_types`)
lose the old experts, all others lose the new ones. In evaluation, and with one group, nothing happens: at
test all experts compete. So each token trains in exactly one group, and what old-looking tokens would teach
the new experts, which is what pulls old tokens to them later, is not taught.

The paper masks only the new group, for tokens that are not new; its released code masks both, which made
its numbers and is the default here (`symmetric`). With many old experts hardly a token looks new and the
new group starves: `tau_warmup` and `group_score`, which are ours, are remedies (so is the initialisation of
rows).

Reference:
    DyMoE, arXiv 2603.27481.
"""

import torch
from torch import Tensor

from moe_adapt.errors import UserError
from moe_adapt.routing.base import MODIFIERS, Logits
from moe_adapt.routing.context import RouteContext
from moe_adapt.routing.modifiers.expert_groups import ExpertGroups
from moe_adapt.routing.token_types import GroupScore, group_scores, token_types

__all__ = ["TokenAssignmentModifier", "warmed_tau"]


def warmed_tau(tau: float, warmup: float, progress: float) -> float | None:
    """Return the threshold at a share of the task, or None while there is no guidance yet.

    There is none for the share `warmup`; over another such share it rises from 0 to `tau`.

    >>> [warmed_tau(0.2, 0.1, progress) for progress in (0.05, 0.15, 0.5)]
    [None, 0.1, 0.2]
    """
    if progress < warmup:
        return None
    rise = 1.0 if warmup == 0 else min(1.0, (progress - warmup) / warmup)
    return round(tau * rise, 12)


@MODIFIERS.register("token_assignment")
class TokenAssignmentModifier(ExpertGroups):
    """Sends each training token to the new or to the old experts.

    Args:
        num_experts: Number of experts, `E`.
        tau: Least relative gap of group scores for a token to look new. Higher: fewer tokens look new, so
            less forgetting and slower learning.
        symmetric: Whether tokens that look new lose the old experts, too.
        tau_warmup: Share of the task without guidance; the threshold rises over another such share. Higher:
            new experts see more tokens before the guidance begins.
        group_score: How old groups are scored, ``max`` or ``task_mean_max``.

    Raises:
        UserError: If `tau` or `tau_warmup` is not in [0, 1).
    """

    reference = "DyMoE, arXiv 2603.27481"

    def __init__(
        self,
        num_experts: int,
        tau: float = 0.2,
        symmetric: bool = True,
        tau_warmup: float = 0.0,
        group_score: GroupScore = "max",
    ) -> None:
        super().__init__(num_experts)
        for name, value in (("tau", tau), ("tau_warmup", tau_warmup)):
            if not 0 <= value < 1:
                raise UserError(f"token assignment's {name} is in [0, 1), got {value}.")
        if group_score not in ("max", "task_mean_max"):
            raise UserError(f"group_score is 'max' or 'task_mean_max', got {group_score!r}.")
        self.tau, self.symmetric = tau, symmetric
        self.tau_warmup, self.group_score = tau_warmup, group_score

    def forward(self, logits: Logits, x: Tensor, ctx: RouteContext) -> Logits:
        """Return logits [N, E] that are minus infinity for the group that a token must not use."""
        tau = warmed_tau(self.tau, self.tau_warmup, ctx.progress) if ctx.training else None
        found = None if tau is None else group_scores(logits.select, self.expert_groups, self.group_score)
        if tau is None or found is None:
            return logits
        use_new = token_types(*found, tau).new[:, None]
        newest = self.expert_groups == self.expert_groups.max()
        banned = ~use_new & newest
        if self.symmetric:
            banned = banned | (use_new & ~newest)
        select = logits.select.masked_fill(banned, -torch.inf)
        if logits.weight is logits.select:
            return Logits(select, select)
        return Logits(select, logits.weight.masked_fill(banned, -torch.inf))
