"""Two ways through rank space with the same three steps: all experts at once, or tokens sorted by expert.

A path knows the routing of one call. `shrink` goes into rank space and gates, `expand` comes out of it,
`gradient` sums a weight gradient; the forward and the backward pass are written once in terms of them.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from moe_adapt.kernels.triton.expand import expand
from moe_adapt.kernels.triton.gradient import weight_gradient
from moe_adapt.kernels.triton.grouped import Groups, group_expand, group_gradient, group_shrink
from moe_adapt.kernels.triton.shrink import shrink
from moe_adapt.kernels.triton.support import interpreted
from moe_adapt.kernels.triton.tiles import grouped_tiles, uses_groups

__all__ = ["Path", "path"]


class Path(Protocol):
    """What both ways can do.

    `by_rank` says that a factor is laid out as `A` [E, r, d] and not as `B` [o, E, r].
    """

    def shrink(
        self, x: Tensor, factor: Tensor, by_rank: bool, hidden: Tensor, backward: bool, dgates: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return `z = s g h` and, in the backward pass, `dh = s g u`; read or save `h`, write `dgates`."""

    def expand(self, z: Tensor, factor: Tensor, by_rank: bool, base: Tensor | None, out: Tensor) -> None:
        """Write `base` plus `z` times the factor into `out`."""

    def gradient(self, p: Tensor, q: Tensor, by_rank: bool, out: Tensor, trainable: Tensor | None) -> None:
        """Write the sum over tokens of the outer products of `p` and `q` into `out`."""


@dataclass(frozen=True)
class _AtOnce:
    rank: int
    gates: Tensor
    index: Tensor | None
    scale: float
    upcast: bool

    def shrink(self, x, factor, by_rank, hidden, backward, dgates):
        return shrink(
            x,
            factor,
            by_rank,
            self.rank,
            self.gates,
            self.index,
            self.scale,
            hidden,
            self.upcast,
            backward,
            dgates,
        )

    def expand(self, z, factor, by_rank, base, out):
        expand(z, factor, by_rank, base, out, self.upcast)

    def gradient(self, p, q, by_rank, out, trainable):
        weight_gradient(p, q, self.rank, by_rank, out, trainable, self.upcast)


@dataclass(frozen=True)
class _BySorting:
    groups: Groups
    weight: Tensor
    scale: float
    upcast: bool

    def shrink(self, x, factor, by_rank, hidden, backward, dgates):
        if dgates is not None:
            dgates.zero_()  # an empty slot belongs to no expert, so that nobody would write it
        return group_shrink(
            x, factor, by_rank, self.groups, self.weight, self.scale, hidden, self.upcast, backward, dgates
        )

    def expand(self, z, factor, by_rank, base, out):
        group_expand(z, factor, by_rank, self.groups, base, out, self.upcast)

    def gradient(self, p, q, by_rank, out, trainable):
        group_gradient(p, q, by_rank, self.groups, out, trainable, self.upcast)


def path(a: Tensor, gates: Tensor, index: Tensor | None, scale: float) -> Path:
    """Choose the path of a call by its shapes.

    Args:
        a: Down-projections, [E, r, d].
        gates: Gates [N, E] or weights [N, K], contiguous.
        index: Experts of the weights, int32 [N, K], contiguous; None for dense gates.
        scale: The LoRA scale `s`.
    """
    experts, rank, width = a.shape
    upcast = a.dtype == torch.bfloat16 and interpreted()
    if index is None or not uses_groups(index.shape[1], experts, rank):
        return _AtOnce(rank, gates, index, scale, upcast)
    rows = grouped_tiles(len(gates), width, experts, rank, a.element_size()).rows
    return _BySorting(Groups.of(index, experts, rows), gates, scale, upcast)
