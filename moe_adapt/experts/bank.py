"""A bank of LoRA experts: the stacked factors of one site. `moe_adapt.kernels` computes the mixture."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from moe_adapt.kernels import routed_lora, stacked, traced
from moe_adapt.kernels.dispatch import choose
from moe_adapt.kernels.problem import Problem

__all__ = ["ExpertBank"]


@dataclass(frozen=True, eq=False)  # told apart by identity: tensors have no single truth value
class ExpertBank:
    """The experts of one site, as a view on tensors that the adapter layer owns.

    A bank may consist of a frozen and a trainable block; `from_blocks` puts them side by side. Experts are
    counted in the router's order everywhere in this class.

    Attributes:
        a: Down-projections, [E, r, d], in storage order; [1, r, d] if the experts share one.
        b: Up-projections, [o, E, r], in storage order.
        scale: The LoRA scale `s`.
        order: `order[i]` is the router's index of the expert stored at position `i`; None if the orders
            agree.
        frozen: How many experts, the first ones in storage order, are not trained.
    """

    a: Tensor
    b: Tensor
    scale: float
    order: tuple[int, ...] | None = None
    frozen: int = 0

    @classmethod
    def from_blocks(
        cls,
        blocks: Sequence[tuple[Tensor, Tensor]],
        scale: float,
        order: tuple[int, ...] | None = None,
        dtype: torch.dtype | None = None,
        frozen: int = 0,
    ) -> "ExpertBank":
        """Build a bank from blocks of experts, frozen ones first.

        Args:
            blocks: Pairs of factors [E_i, r, d] and [o, E_i, r].
            scale: The LoRA scale `s`.
            order: Router index of each stored expert.
            dtype: What to compute in; None keeps the dtype of the factors.
            frozen: How many of the experts are not trained.
        """
        downs, ups = zip(*blocks, strict=True)
        a = downs[0] if len(blocks) == 1 else torch.cat(downs, dim=0)
        b = ups[0] if len(blocks) == 1 else torch.cat(ups, dim=1)
        if dtype is not None:
            a, b = a.to(dtype), b.to(dtype)
        return cls(a=a, b=b, scale=scale, order=order, frozen=frozen)

    @property
    def num_experts(self) -> int:
        """Number of experts `E`."""
        return self.b.shape[1]

    def position(self, expert: int) -> int:
        """Return where the expert with the router's index `expert` is stored."""
        return expert if self.order is None else self.order.index(expert)

    @property
    def trainable(self) -> tuple[bool, ...] | None:
        """Whether each expert is trained, in storage order; None if all are."""
        if self.frozen == 0:
            return None
        return (False,) * self.frozen + (True,) * (self.num_experts - self.frozen)

    def __call__(self, x: Tensor, gates: Tensor, base: Tensor, index: Tensor | None = None) -> Tensor:
        """Return `base` [N, o] plus the mixture of the experts for `x` [N, d] and `gates` [N, E].

        Args:
            x: Tokens, [N, d].
            gates: Weight of each expert, [N, E].
            base: Output of the frozen layer, [N, o].
            index: Where gates may be other than zero, int [N, K], if the router says so.
        """
        gates, index = self._stored(gates, index)
        if torch.compiler.is_compiling():
            return traced.mixture(x, base, self.a, self.b, self.scale, gates)
        return routed_lora(
            x, base, self.a, self.b, self.scale, gates=gates, index=index, trainable=self.trainable
        )

    @property
    def shares_a(self) -> bool:
        """Whether several experts have one down-projection (HydraLoRA)."""
        return len(self.a) < self.num_experts

    @property
    def has_own_factors(self) -> bool:
        """Whether each expert has a `B` of its own, so that the operator takes the factors as they are."""
        return True

    @property
    def no_matrix(self) -> str:
        """Why an expert is no change of weight; nothing if it is one, as a LoRA is."""
        return ""

    def own_factors(self) -> "ExpertBank":
        """Return a bank with factors of its own for each expert that computes the same: this one."""
        return self

    def stacks(self, x: Tensor, slots: int | None) -> bool:
        """Return whether the mixture of `x` [N, d] is computed in the stacked form: `shrink` and `expand`.

        Args:
            x: Tokens.
            slots: The most experts per token; None if any number may have a gate.
        """
        if self.shares_a:
            return False
        experts, rank, features = self.a.shape
        problem = Problem(
            len(x),
            features,
            len(self.b),
            experts,
            rank,
            slots,
            self.a.dtype,
            x.device.type,
            torch.is_grad_enabled(),
        )
        return choose(problem) == "stacked"

    def shrink(self, x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return hidden vectors `A_cat x` [N, E r] and router logits `rows x` [N, E'] from one product.

        Args:
            x: Tokens, [N, d].
            rows: Router rows, [E', d].
        """
        hidden, logits = stacked.shrink(x, self.a, rows, self.trainable)
        assert logits is not None
        return hidden, logits

    def expand(self, hidden: Tensor, gates: Tensor, base: Tensor) -> Tensor:
        """Return `base` [N, o] plus the mixture for the hidden vectors that `shrink` gave."""
        gates, _ = self._stored(gates, None)
        return stacked.expand(base, hidden, self.b, gates, self.scale, self.trainable)

    def _stored(self, gates: Tensor, index: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return gates and index in storage order."""
        if self.order is None:
            return gates, index
        if index is not None:
            positions = [self.order.index(expert) for expert in range(self.num_experts)]
            index = torch.tensor([*positions, -1], device=index.device)[index.long()]
        return gates[:, list(self.order)], index

    def delta_weight(self, expert: int) -> Tensor:
        """Return `s B_e A_e`, the change of weight that one expert makes, [o, d]."""
        position = self.position(expert)
        down = self.a[0 if self.shares_a else position]
        return (self.b[:, position] @ down) * self.scale
