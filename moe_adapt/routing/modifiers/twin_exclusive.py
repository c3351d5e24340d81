"""Twin-exclusive choice: at most one of several copies of an expert per token.

After a duplication, top-k would pick an expert and its copy, and a mixture of `K` experts becomes one of
fewer. Here the copies (twins) compete first: the best one stands for its group with the group's log-sum-exp,
the others are out. While copies are equal, a mixture with fixed `K` is then exactly what it was.
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
    """

    reference = "no paper: keeps copies of an expert apart"

    twins: Tensor

    reads_input = False

    def __init__(self, num_experts: int) -> None:
        super().__init__()
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
        out = torch.zeros_like(together, dtype=logits.select.dtype).masked_fill(~together, -torch.inf)
        grouped = [(part[:, None, :] + out).logsumexp(dim=-1) for part in logits[:2]]
        index = torch.arange(len(self.twins), device=x.device)
        rivals = logits.select[:, None, :]
        own = logits.select[:, :, None]
        better = (rivals > own) | ((rivals == own) & (index[None, :] < index[:, None]))
        loses = (better & together).any(dim=-1)
        return logits._replace(
            select=grouped[0].masked_fill(loses, -torch.inf), weight=grouped[1].masked_fill(loses, -torch.inf)
        )
