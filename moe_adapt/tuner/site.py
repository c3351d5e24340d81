"""What an adapter consists of at one layer: the resolved values, which its configuration keeps."""

import math
from dataclasses import asdict, dataclass
from typing import Any

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
    """

    num_experts: int
    r: int
    alpha: float
    frozen: int = 0
    order: list[int] | None = None
    uids: list[str] | None = None
    shared_a: bool = False

    @property
    def names(self) -> list[str]:
        """Names of the experts in the router's order."""
        return [str(number) for number in range(self.num_experts)] if self.uids is None else self.uids

    def scale(self, use_rslora: bool) -> float:
        """Return the LoRA scale `s`."""
        return self.alpha / (math.sqrt(self.r) if use_rslora else self.r)

    def to_dict(self) -> dict[str, Any]:
        """Return the values as plain JSON types."""
        return asdict(self)
