r"""A bank of LoRA experts and its mixture, computed with two matrix products whatever the routing rule.

A routed mixture of `E` experts of rank `r` is one LoRA of rank `R = E r` whose hidden vector is scaled per
token:

$$y = W x + s \sum_e g_e B_e A_e x = W x + s\, B_{cat}\big((g \otimes 1_r) \odot (A_{cat} x)\big)$$

with `A` stacked as [E, r, d] and `B` as [o, E, r], so that `A_cat` [R, d] and `B_cat` [o, R] are views. The
scale is folded into the gates, except for `E = 1`, which keeps the order of operations of PEFT's LoRA and is
bit-equal to it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["ExpertBank", "add_mixture"]


def add_mixture(base: Tensor, x: Tensor, a: Tensor, b: Tensor, gates: Tensor, scale: float) -> Tensor:
    """Return the base output plus the gated sum of the experts' outputs.

    Args:
        base: Output of the frozen layer, [N, o].
        x: Input of the layer, [N, d], in the dtype in which the experts compute.
        a: Down-projections of the experts, [E, r, d].
        b: Up-projections of the experts, [o, E, r].
        gates: Weight of each expert for each token, [N, E]; zero where an expert is not selected. A row of
            zeros gives exactly the base output.
        scale: The LoRA scale `s`.

    Returns:
        The sum, [N, o], in the wider of the dtypes of `base` and of the experts' output.

    >>> x, a, b = torch.ones(1, 2), torch.ones(3, 1, 2), torch.ones(2, 3, 1)
    >>> add_mixture(torch.zeros(1, 2), x, a, b, torch.tensor([[1.0, 0.5, 0.0]]), scale=2.0)
    tensor([[6., 6.]])
    """
    experts, rank, width = a.shape
    return expand(base, F.linear(x, a.reshape(experts * rank, width)), b, gates, scale)


def expand(base: Tensor, hidden: Tensor, b: Tensor, gates: Tensor, scale: float) -> Tensor:
    """Return the base output plus the gated sum of the experts' outputs for their hidden vectors.

    Args:
        base: Output of the frozen layer, [N, o].
        hidden: `A_cat x`, [N, E r].
        b: Up-projections of the experts, [o, E, r].
        gates: Weight of each expert for each token, [N, E].
        scale: The LoRA scale `s`.
    """
    _, experts, rank = b.shape
    up = b.reshape(b.shape[0], experts * rank)
    if experts == 1:
        return base + F.linear(hidden * gates.to(hidden.dtype), up) * scale
    weights = (gates * scale).to(hidden.dtype)
    hidden = (hidden.view(-1, experts, rank) * weights.unsqueeze(-1)).view(-1, experts * rank)
    if base.dtype == hidden.dtype:
        return torch.addmm(base, hidden, up.t())
    return base + F.linear(hidden, up)


@dataclass(frozen=True)
class ExpertBank:
    """The experts of one site, as a view on tensors that the adapter layer owns.

    A bank may consist of a frozen and a trainable block; `from_blocks` puts them side by side. Experts are
    counted in the router's order everywhere in this class.

    Attributes:
        a: Down-projections, [E, r, d], in storage order.
        b: Up-projections, [o, E, r], in storage order.
        scale: The LoRA scale `s`.
        order: `order[i]` is the router's index of the expert stored at position `i`; None if the orders
            agree.
    """

    a: Tensor
    b: Tensor
    scale: float
    order: tuple[int, ...] | None = None

    @classmethod
    def from_blocks(
        cls,
        blocks: Sequence[tuple[Tensor, Tensor]],
        scale: float,
        order: tuple[int, ...] | None = None,
        dtype: torch.dtype | None = None,
    ) -> "ExpertBank":
        """Build a bank from blocks of experts, frozen ones first.

        Args:
            blocks: Pairs of factors [E_i, r, d] and [o, E_i, r].
            scale: The LoRA scale `s`.
            order: Router index of each stored expert.
            dtype: What to compute in; None keeps the dtype of the factors.
        """
        downs, ups = zip(*blocks, strict=True)
        a = downs[0] if len(blocks) == 1 else torch.cat(downs, dim=0)
        b = ups[0] if len(blocks) == 1 else torch.cat(ups, dim=1)
        if dtype is not None:
            a, b = a.to(dtype), b.to(dtype)
        return cls(a=a, b=b, scale=scale, order=order)

    @property
    def num_experts(self) -> int:
        """Number of experts `E`."""
        return self.a.shape[0]

    def position(self, expert: int) -> int:
        """Return where the expert with the router's index `expert` is stored."""
        return expert if self.order is None else self.order.index(expert)

    def __call__(self, x: Tensor, gates: Tensor, base: Tensor) -> Tensor:
        """Return `base` [N, o] plus the mixture of the experts for `x` [N, d] and `gates` [N, E]."""
        return add_mixture(base, x, self.a, self.b, self._stored(gates), self.scale)

    def shrink(self, x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return hidden vectors and router logits from one matrix product.

        A router with its own product reads `x`, and writes its gradient, a second time; for a few rows that
        costs more than the arithmetic.

        Args:
            x: Tokens, [N, d].
            rows: Router rows, [E', d].

        Returns:
            `A_cat x` [N, E r] and `rows x` [N, E'].
        """
        down = self.a.reshape(-1, self.a.shape[-1])
        hidden, logits = F.linear(x, torch.cat([down, rows])).split([len(down), len(rows)], dim=-1)
        return hidden, logits

    def expand(self, hidden: Tensor, gates: Tensor, base: Tensor) -> Tensor:
        """Return `base` [N, o] plus the mixture for the hidden vectors that `shrink` gave."""
        return expand(base, hidden, self.b, self._stored(gates), self.scale)

    def _stored(self, gates: Tensor) -> Tensor:
        return gates if self.order is None else gates[:, list(self.order)]

    def delta_weight(self, expert: int) -> Tensor:
        """Return `s B_e A_e`, the change of weight that one expert makes, [o, d]."""
        position = self.position(expert)
        return (self.b[:, position] @ self.a[position]) * self.scale
