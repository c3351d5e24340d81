"""What an adapter consists of: sites, experts and trainable parameters by group."""

from dataclasses import dataclass, field

__all__ = ["AdapterSummary"]


@dataclass
class AdapterSummary:
    """Size of an adapter in its model.

    Attributes:
        adapter: Name of the adapter.
        method: Method preset.
        sites: Number of adapted layers.
        linear_layers: Number of linear layers of the base model that could be adapted.
        experts: Number of experts over all sites.
        frozen_experts: How many of them are frozen.
        ranks: Distinct ranks of the experts.
        trainable: Trainable parameters by group: router, experts, other.
        total: All parameters of the model, adapter included.
    """

    adapter: str
    method: str
    sites: int
    linear_layers: int
    experts: int
    frozen_experts: int
    ranks: list[int]
    trainable: dict[str, int] = field(default_factory=dict)
    total: int = 0

    @property
    def trainable_total(self) -> int:
        """Number of trainable parameters."""
        return sum(self.trainable.values())

    def __str__(self) -> str:
        ranks = ", ".join(str(rank) for rank in self.ranks)
        share = 100 * self.trainable_total / max(self.total, 1)
        rows = [
            ("adapter", f"{self.adapter} ({self.method})"),
            ("layers adapted", f"{self.sites} of {self.linear_layers} linear layers"),
            ("experts", f"{self.experts} of rank {ranks}, {self.frozen_experts} frozen"),
            *((f"trainable, {group}", f"{count:,}") for group, count in self.trainable.items() if count),
            ("trainable, total", f"{self.trainable_total:,} of {self.total:,} ({share:.2f} %)"),
        ]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)
