"""What an implementation is asked for: the operands of one call, and their shapes without the values."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Operands", "Problem"]


class Problem(NamedTuple):
    """Shapes, types and flags of a call: all that the choice of an implementation may depend on.

    Attributes:
        tokens: `N`.
        in_features: `d`.
        out_features: `o`.
        experts: `E`.
        rank: `r`.
        slots: The most experts per token, `K`; None if any number may have a gate.
        dtype: What the experts compute in.
        device: Device type, such as ``"cpu"``.
        trains: Whether a backward pass may follow.
    """

    tokens: int
    in_features: int
    out_features: int
    experts: int
    rank: int
    slots: int | None
    dtype: torch.dtype
    device: str
    trains: bool

    @property
    def width(self) -> int:
        """`R = E r`, the rank of the mixture."""
        return self.experts * self.rank


@dataclass(frozen=True)
class Operands:
    """Checked operands of one call; `x`, `a` and `b` have one floating-point type.

    Routing comes in one of three forms: `gates` alone; `gates` with `index`, which says where gates may be
    other than zero; `index` with `weight`.

    Attributes:
        x: Tokens, [N, d].
        base: What the mixture is added to, [N, o]; None for nothing.
        a: Down-projections, [E, r, d]; [1, r, d] if the experts share one.
        b: Up-projections, [o, E, r].
        scale: The LoRA scale `s`.
        gates: Weight of each expert, [N, E], or None.
        index: Expert of each slot, int [N, K], -1 for an empty slot, or None.
        weight: Weight of each slot, [N, K], or None.
        trainable: Whether each expert is trained, `E` of them; None for all.
        deterministic: Whether a repeated call has to give the same bits.
        out: Where the result goes, [N, o], possibly `base`; None for a new tensor. Only without gradients.
    """

    x: Tensor
    base: Tensor | None
    a: Tensor
    b: Tensor
    scale: float
    gates: Tensor | None = None
    index: Tensor | None = None
    weight: Tensor | None = None
    trainable: tuple[bool, ...] | None = None
    deterministic: bool = True
    out: Tensor | None = None

    @property
    def shares_a(self) -> bool:
        """Whether several experts have one down-projection."""
        return len(self.a) < self.b.shape[1]

    def problem(self) -> Problem:
        """Return the shapes, types and flags."""
        experts, rank, width = self.a.shape
        routing = self.weight if self.gates is None else self.gates
        assert routing is not None
        trains = torch.is_grad_enabled() and any(
            tensor is not None and tensor.requires_grad for tensor in (self.x, self.a, self.b, routing)
        )
        return Problem(
            tokens=self.x.shape[0],
            in_features=width,
            out_features=self.b.shape[0],
            experts=experts,
            rank=rank,
            slots=None if self.index is None else self.index.shape[1],
            dtype=self.a.dtype,
            device=self.x.device.type,
            trains=trains,
        )

    def dense_gates(self) -> Tensor:
        """Return the gates [N, E], differentiable; weights of an expert that is listed twice add up."""
        if self.gates is not None:
            return self.gates
        assert self.index is not None and self.weight is not None
        empty = self.index < 0
        zeros = self.weight.new_zeros(self.x.shape[0], self.b.shape[1])
        return zeros.scatter_add(1, self.index.clamp(min=0).long(), self.weight.masked_fill(empty, 0))

    def slot_weights(self) -> Tensor:
        """Return the weight of each slot [N, K], differentiable; zero for an empty one.

        Raises:
            ValueError: If the routing names no slots (`gates` without `index`).
        """
        if self.index is None:
            raise ValueError("gates without an index have no slots.")
        if self.weight is not None:
            return self.weight.masked_fill(self.index < 0, 0)
        assert self.gates is not None
        return self.gates.gather(1, self.index.clamp(min=0).long()).masked_fill(self.index < 0, 0)
