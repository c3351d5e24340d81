"""Router z-loss: the mean squared log-sum-exp of the logits, which keeps them small and the softmax stable.

Reference: Zoph et al., "ST-MoE: Designing Stable and Transferable Sparse Expert Models", arXiv 2202.08906.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from moe_adapt.routing.base import AUX_LOSSES, AuxLoss
from moe_adapt.routing.records import RecordGroup

__all__ = ["ZLoss"]


@AUX_LOSSES.register("z_loss")
class ZLoss(AuxLoss):
    """Mean over tokens and sites of `logsumexp(z)^2`.

    Args:
        weight: Coefficient in the total loss. Higher: smaller logits, gates closer to equal.
    """

    reference = "ST-MoE, Zoph et al. 2022, arXiv 2202.08906"

    def __init__(self, weight: float = 1e-3) -> None:
        super().__init__(weight)

    def forward(self, groups: Sequence[RecordGroup]) -> Tensor:
        """Return the mean."""
        per_site = [group.token_mean(group.logits.logsumexp(dim=-1).square()) for group in groups]
        return torch.cat(per_site).mean()
