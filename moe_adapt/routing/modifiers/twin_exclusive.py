"""Twin-exclusive choice: at most one of several copies of an expert per token.

After a duplication, top-k would pick an expert and its copy, and a mixture of `K` experts becomes one of
fewer. Here the copies (twins) compete first: the best one stands for its group with the group's log-sum-exp,
the others are out. While copies are equal, a mixture with fixed `K` is then exactly what it was, once
`-log(copies)` was added to their logits.

With `joint=False` the winner stands for itself alone and equal logits go to the newest. Nothing needs to be
added then: a new copy takes the place of its original wherever that was chosen, bit for bit the same gates,
and learns; without the copy the original is chosen again.
"""

import torch
from torch import Tensor

from moe_adapt.experts import PoolEdit
from moe_adapt.routing.base import MODIFIERS, LogitModifier, Logits
from moe_adapt.routing.context import RouteContext

__all__ = ["TwinExclusive"]


@MODIFIERS.register("twin_exclusive")
class TwinExclusive(LogitModifier):
    """Lets one expert of each group of twins through. At first every expert is alone.

    Args:
        num_experts: Number of columns, `E`.
        joint: Whether the best of a group gets the group's joint share; else its own, and equals go to the
            newest.
    """

    reference = "no paper: keeps copies of an expert apart"

    twins: Tensor

    reads_input = False

    def __init__(self, num_experts: int, joint: bool = True) -> None:
        super().__init__()
        self.joint = joint
        self.register_buffer("twins", torch.arange(num_experts))

    def edited(self, edit: PoolEdit) -> None:
        """Put each new expert into a group of its own."""
        old = [index for index in range(edit.after) if index not in set(edit.fresh)]
        free = int(self.twins[old].max()) + 1 if old else 0
        for number, index in enumerate(edit.fresh):
            self.twins[index] = free + number

    def forward(self, logits: Logits, x: Tensor, ctx: RouteContext) -> Logits:
        """Return logits that are minus infinity but for the best of each group."""
        together = self.twins[:, None] == self.twins[None, :]
        index = torch.arange(len(self.twins), device=x.device)
        earlier = index[None, :] < index[:, None]
        rivals = logits.select[:, None, :]
        own = logits.select[:, :, None]
        better = (rivals > own) | ((rivals == own) & (earlier if self.joint else earlier.T))
        loses = (better & together).any(dim=-1)
        select, weight = logits.select, logits.weight
        if self.joint:
            out = torch.zeros_like(together, dtype=select.dtype).masked_fill(~together, -torch.inf)
            select, weight = ((part[:, None, :] + out).logsumexp(dim=-1) for part in (select, weight))
        return logits._replace(
            select=select.masked_fill(loses, -torch.inf), weight=weight.masked_fill(loses, -torch.inf)
        )
