"""Entropy loss: the mean normalised Tsallis entropy of the router, 1 for uniform and 0 for one-hot routing.

A positive weight sharpens routing (DynMoLE), a negative one flattens it. Order 1 is Shannon's entropy.

Reference: DynMoLE, arXiv 2504.00661 (its code averages over padding too; here padding is excluded).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from moe_adapt.routing.base import AUX_LOSSES, AuxLoss
from moe_adapt.routing.entropy import EntropyKind, check_entropy, routing_entropy
from moe_adapt.routing.records import RecordGroup

__all__ = ["EntropyLoss"]


@AUX_LOSSES.register("entropy")
class EntropyLoss(AuxLoss):
    """Mean over tokens and sites of the router's entropy.

    Args:
        weight: Coefficient in the total loss; positive sharpens, negative flattens. Higher: sharper routing,
            fewer experts in use per token.
        q: Order of the entropy.
        eps: Added to the probabilities (DynMoLE's code uses 1e-5).
        kind: Tsallis entropy, or Rényi's.
    """

    reference = "DynMoLE, arXiv 2504.00661"

    def __init__(
        self, weight: float = 1e-2, q: float = 1.1, eps: float = 0.0, kind: EntropyKind = "tsallis"
    ) -> None:
        super().__init__(weight)
        check_entropy(q, kind)
        self.kind: EntropyKind = kind
        self.q = q
        self.eps = eps

    def forward(self, groups: Sequence[RecordGroup]) -> Tensor:
        """Return the mean entropy."""
        per_site = [
            group.token_mean(routing_entropy(group.probs + self.eps, self.q, self.kind)) for group in groups
        ]
        return torch.cat(per_site).mean()
