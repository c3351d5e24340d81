"""Kinds of banks: how the experts of a site are stored, and what they compute.

A kind is chosen by name (`RoutedLoraConfig(bank="film")`). It says which rank and scale the stored factors
have, which tensors there are beside them, and how to make the bank of these tensors. `lora` stores one pair
of factors per expert and nothing else.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from moe_adapt.experts.bank import ExpertBank
from moe_adapt.registry import Registry

__all__ = ["BANKS", "BankKind", "LoraKind", "StoredSize"]


@dataclass(frozen=True)
class StoredSize:
    """Rank and numerator of the scale of one stored pair of factors."""

    rank: int
    alpha: float


class BankKind:
    """How one adapter keeps its experts; built from the options of the configuration."""

    registered_name: ClassVar[str]

    #: Whether all experts have one `A` and one `B`, and differ in other tensors.
    shares_factors: ClassVar[bool] = False

    def stored(self, num_experts: int, rank: int, alpha: float, use_rslora: bool) -> StoredSize:
        """Return the size of the stored factors for the numbers of the configuration.

        Args:
            num_experts: Number of experts, `E`.
            rank: What the configuration calls `r`.
            alpha: Numerator of the scale.
            use_rslora: Whether the scale is alpha over the root of the rank.
        """
        return StoredSize(rank, alpha)

    def expert_tensors(self, num_experts: int, rank: int) -> dict[str, Tensor]:
        """Return the start of the tensors with a slice per expert, [E, ...], beside `A` and `B`."""
        return {}

    def router_tensors(self, num_experts: int, rank: int) -> dict[str, Tensor]:
        """Return the start of what this kind decides with by itself."""
        return {}

    def bank(self, factors: ExpertBank, tensors: Mapping[str, Tensor]) -> ExpertBank:
        """Return the bank of stored factors and of this kind's tensors, by name."""
        return factors


BANKS: Registry[BankKind] = Registry("bank kind")


@BANKS.register("lora")
class LoraKind(BankKind):
    """Every expert is a LoRA with factors of its own."""

    reference = "Hu et al. 2021, arXiv 2106.09685"
