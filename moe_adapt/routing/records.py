"""What one forward pass of one site decided, and the grouping that lets losses treat all sites at once."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

__all__ = ["RecordGroup", "RoutingRecord", "group_records"]


@dataclass(frozen=True)
class RoutingRecord:
    """The routing of one site in one forward pass; all tensors are detached.

    Attributes:
        site: Path of the adapted layer.
        logits: Weight logits, [N, E].
        gates: Gates, [N, E].
        selected: Selection, bool [N, E].
        mask: True for real tokens, bool [N]; None if there is no padding.
        nulls: How many of the `E` columns, the last ones, are null experts.
    """

    site: str
    logits: Tensor
    gates: Tensor
    selected: Tensor
    mask: Tensor | None
    nulls: int = 0


class RecordGroup:
    """Records of `L` sites with the same number of tokens and experts, stacked.

    `logits` is a leaf with gradient: auxiliary losses are functions of it, and the gradient found there is
    handed to each site's router (see `moe_adapt.routing.carrier`).

    Attributes:
        sites: Paths of the `L` sites.
        logits: [L, N, E].
        gates: [L, N, E], no gradient.
        selected: bool [L, N, E].
        mask: bool [N] or None.
        nulls: How many of the `E` columns, the last ones, are null experts.
    """

    def __init__(self, records: list[RoutingRecord]) -> None:
        self.sites = [record.site for record in records]
        self.logits = torch.stack([record.logits for record in records]).requires_grad_()
        self.gates = torch.stack([record.gates for record in records])
        self.selected = torch.stack([record.selected for record in records])
        self.mask = records[0].mask
        self.nulls = records[0].nulls

    @property
    def num_experts(self) -> int:
        """Columns per site, `E`: experts, and null experts if the selector has any."""
        return self.logits.shape[-1]

    @cached_property
    def probs(self) -> Tensor:
        """Router probabilities `softmax(logits)`, [L, N, E], differentiable."""
        return self.logits.softmax(dim=-1)

    def token_mean(self, values: Tensor) -> Tensor:
        """Return the mean of `values` [L, N, ...] over the unpadded tokens, [L, ...]."""
        if self.mask is None:
            return values.mean(dim=1)
        mask = self.mask.to(values.dtype)
        total = torch.einsum("ln...,n->l...", values, mask)
        return total / mask.sum().clamp(min=1)


def group_records(records: Iterable[RoutingRecord]) -> list[tuple[RecordGroup, list[int]]]:
    """Stack records of equal shape and mask.

    Returns:
        The groups, each with the positions of its members among `records`.
    """
    members: dict[tuple, list[tuple[int, RoutingRecord]]] = {}
    for position, record in enumerate(records):
        key = (record.logits.shape, record.logits.device, id(record.mask), record.nulls)
        members.setdefault(key, []).append((position, record))
    return [
        (RecordGroup([record for _, record in group]), [position for position, _ in group])
        for group in members.values()
    ]
