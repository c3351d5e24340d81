"""What one forward pass of one site decided, and the grouping that lets losses treat all sites at once."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from moe_adapt.routing.softmax import softmax

__all__ = ["Point", "RecordGroup", "RoutingRecord", "group_records", "kept"]

#: Where in a router auxiliary gradients enter: at the scorer's output, or after the modifiers.
Point = Literal["scores", "logits"]


def kept(tensor: Tensor) -> Tensor:
    """Return a tensor as records hold it: detached, unless a compiler differentiates through the records."""
    return tensor if torch.compiler.is_compiling() else tensor.detach()


def _leaf(tensor: Tensor) -> Tensor:
    return tensor if torch.compiler.is_compiling() else tensor.requires_grad_()


@dataclass(frozen=True, eq=False)
class RoutingRecord:
    """The routing of one site in one forward pass; tensors are detached (`kept`).

    Attributes:
        site: Path of the adapted layer.
        logits: Weight logits, [N, E].
        gates: Gates, [N, E].
        selected: Selection, bool [N, E].
        mask: True for real tokens, bool [N]; None if there is no padding.
        nulls: How many of the `E` columns, the last ones, are null experts.
        scores: What the scorer gave, [N, E], if modifiers changed it since.
        expert_groups: Group (task) of each expert, int [E], if the router tells groups apart.
        by_label: Whether labels and not the router decided.
        domains: Domain of each token, int [N], -1 for none; None if unknown.
        anchor: What the router would have given when it was anchored, [N, E]; None if it is not.
        stack: Number of the stack of the model that the tokens belong to (`RouteContext.arrive`).
        pool: Name of the pool that the site's experts are in; None if they are its own.
    """

    site: str
    logits: Tensor
    gates: Tensor
    selected: Tensor
    mask: Tensor | None
    nulls: int = 0
    scores: Tensor | None = None
    expert_groups: Tensor | None = None
    by_label: bool = False
    domains: Tensor | None = None
    anchor: Tensor | None = None
    stack: int = 0
    pool: str | None = None


class RecordGroup:
    """Records of `L` sites with the same number of tokens and experts, stacked.

    `logits` and `scores` are leaves with gradient: auxiliary losses are functions of them, and the gradient
    found there is handed to each site's router (see `moe_adapt.routing.carrier`).

    Attributes:
        sites: Paths of the `L` sites.
        logits: Weight logits, [L, N, E].
        scores: What the scorers gave, [L, N, E]; the logits themselves where there are no modifiers.
        expert_groups: Group of each expert of each site, int [E] or None.
        progress: Share of the task's optimizer steps that are done.
        gates: [L, N, E], no gradient.
        selected: bool [L, N, E].
        mask: bool [N] or None.
        nulls: How many of the `E` columns, the last ones, are null experts.
        domains: Domain of each token, int [N], or None.
        anchor: What anchored routers would have given, [L, N, E], no gradient; None without anchors.
        pools: Name of the pool of each site's experts, or None.
    """

    def __init__(self, records: list[RoutingRecord], progress: float = 1.0) -> None:
        self._probs: Tensor | None = None
        self.sites = [record.site for record in records]
        self.logits = _leaf(torch.stack([record.logits for record in records]))
        raw = [record.scores for record in records if record.scores is not None]
        self.scores = _leaf(torch.stack(raw)) if raw else self.logits
        self.expert_groups = [record.expert_groups for record in records]
        self.progress = progress
        self.gates = torch.stack([record.gates for record in records])
        self.selected = torch.stack([record.selected for record in records])
        self.mask = records[0].mask
        self.nulls = records[0].nulls
        self.domains = records[0].domains
        self.pools = [record.pool for record in records]
        anchors = [record.anchor for record in records if record.anchor is not None]
        self.anchor = torch.stack(anchors) if anchors else None

    def points(self) -> list[Point]:
        """Return where losses may depend on the routers: `logits`, and `scores` if they differ."""
        return ["logits"] if self.scores is self.logits else ["logits", "scores"]

    @property
    def num_experts(self) -> int:
        """Columns per site, `E`: experts, and null experts if the selector has any."""
        return self.logits.shape[-1]

    @property
    def probs(self) -> Tensor:
        """Router probabilities `softmax(logits)`, [L, N, E], differentiable."""
        if self._probs is None:
            self._probs = softmax(self.logits)
        return self._probs

    def token_mean(self, values: Tensor) -> Tensor:
        """Return the mean of `values` [L, N, ...] over the unpadded tokens, [L, ...]."""
        if self.mask is None:
            return values.mean(dim=1)
        mask = self.mask.to(values.dtype)
        total = torch.einsum("ln...,n->l...", values, mask)
        return total / mask.sum().clamp(min=1)


def group_records(
    records: Iterable[RoutingRecord], progress: float = 1.0
) -> list[tuple[RecordGroup, list[int]]]:
    """Stack records of equal shape and mask.

    Args:
        records: The records.
        progress: Share of the task's optimizer steps that are done.

    Returns:
        The groups, each with the positions of its members among `records`.
    """
    members: dict[tuple, list[tuple[int, RoutingRecord]]] = {}
    for position, record in enumerate(records):
        has = (record.scores is not None, record.anchor is not None)
        key = (record.logits.shape, record.logits.device, record.stack, record.nulls, has)
        members.setdefault(key, []).append((position, record))
    return [
        (RecordGroup([record for _, record in group], progress), [position for position, _ in group])
        for group in members.values()
    ]
