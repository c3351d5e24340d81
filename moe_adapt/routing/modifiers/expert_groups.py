"""Which task brought which expert, for losses that tell the groups apart; logits stay as they are."""

import torch
from torch import Tensor

from moe_adapt.experts import PoolEdit
from moe_adapt.routing.base import MODIFIERS, LogitModifier, Logits
from moe_adapt.routing.context import RouteContext

__all__ = ["ExpertGroups"]


@MODIFIERS.register("expert_groups")
class ExpertGroups(LogitModifier):
    """Numbers the groups of experts that edits of the pool add.

    Args:
        num_experts: Number of experts, `E`.

    Attributes:
        expert_groups: Group of each expert, int [E]; the newest has the largest number.
    """

    reference = "DyMoE, arXiv 2603.27481"

    expert_groups: Tensor

    reads_input = False

    def __init__(self, num_experts: int) -> None:
        super().__init__()
        self.register_buffer("expert_groups", torch.zeros(num_experts, dtype=torch.int64))

    def edited(self, edit: PoolEdit) -> None:
        """Put the experts that an edit of the pool has added into a group of their own, the newest."""
        fresh = edit.fresh
        kept = [expert for expert in range(edit.after) if expert not in set(fresh)]
        if fresh and kept:
            self.expert_groups[fresh] = self.expert_groups[kept].max() + 1

    def forward(self, logits: Logits, x: Tensor, ctx: RouteContext) -> Logits:
        """Return the logits."""
        return logits
