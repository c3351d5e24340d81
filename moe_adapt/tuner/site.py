"""What an adapter consists of at one layer: the resolved values, which its configuration keeps."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["SiteSpec"]


@dataclass
class SiteSpec:
    """Resolved values of one adapted layer.

    Attributes:
        num_experts: Number of experts, `E`.
        r: Rank of each expert.
        alpha: Numerator of the scale.
        frozen: Number of frozen experts; they are stored before the trainable ones.
        order: Router index of each stored expert; None if experts are stored in the router's order.
        uids: Name of each expert in the router's order; None if they are called by their numbers.
        shared_a: Whether all experts have one down-projection (HydraLoRA).
        rows: Expert of each row of the router; None if each expert has one (`merge_experts`).
        origins: Names of the experts that each expert descends from; None if each is its own.
        made: How many experts there have been, so that no number names two; None if as many as there are.
        pool: Name of the pool that the experts are in (`moe_adapt.tuner.pools`); None if they are the
            layer's own.
    """

    num_experts: int
    r: int
    alpha: float
    frozen: int = 0
    order: list[int] | None = None
    uids: list[str] | None = None
    shared_a: bool = False
    rows: list[int] | None = None
    origins: list[list[str]] | None = None
    made: int | None = None
    pool: str | None = None

    @property
    def names(self) -> list[str]:
        """Names of the experts in the router's order."""
        return [str(number) for number in range(self.num_experts)] if self.uids is None else self.uids

    @property
    def lineage(self) -> list[list[str]]:
        """Names of the experts that each expert descends from, in the router's order."""
        return [[name] for name in self.names] if self.origins is None else self.origins

    def expert_rows(self, rows: Tensor) -> Tensor:
        """Return one row per expert, [E, d], of those of a router: the mean of its own; nulls drop out."""
        if self.rows is None:
            return rows[: self.num_experts]
        own = [[row for row, expert in enumerate(self.rows) if expert == e] for e in range(self.num_experts)]
        return torch.stack([rows[several].mean(dim=0) for several in own])

    def scale(self, use_rslora: bool) -> float:
        """Return the LoRA scale `s`."""
        return self.alpha / (math.sqrt(self.r) if use_rslora else self.r)

    def to_dict(self) -> dict[str, Any]:
        """Return the values as plain JSON types; without a pool as older releases read them."""
        values = asdict(self)
        if self.pool is None:
            del values["pool"]
        return values
