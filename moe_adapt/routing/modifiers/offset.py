"""Offset: a constant added to each expert's logit.

Pool edits use it: a copied expert whose logit gets `-log(copies)`, or a merged one that gets the logarithm of
how many it replaces, leaves the mixture as it was (`moe_adapt.experts.PoolEdit`).
"""

import torch
from torch import Tensor

from moe_adapt.experts import PoolEdit
from moe_adapt.routing.base import MODIFIERS, LogitModifier, Logits
from moe_adapt.routing.context import RouteContext

__all__ = ["Offset"]


@MODIFIERS.register("offset")
class Offset(LogitModifier):
    """Adds a stored constant to each logit, zero at first; it is no parameter.

    Args:
        num_experts: Number of columns, `E`.
    """

    reference = "no paper: keeps a mixture equal when its pool is edited"

    offset: Tensor

    reads_input = False

    def __init__(self, num_experts: int) -> None:
        super().__init__()
        self.register_buffer("offset", torch.zeros(num_experts))

    def edited(self, edit: PoolEdit) -> None:
        """Add the correction that keeps a dense mixture the same."""
        self.offset += self.offset.new_tensor(edit.logit_correction())

    def forward(self, logits: Logits, x: Tensor, ctx: RouteContext) -> Logits:
        """Return the shifted logits."""
        return logits.shifted(self.offset.to(logits.weight.dtype))
