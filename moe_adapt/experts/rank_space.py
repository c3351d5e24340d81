r"""Experts that share one LoRA and differ in what they do to its hidden vector.

$$h = A x, \qquad y = W x + s\, B\, m(h, g)$$

with one `A` [r, d], one `B` [o, r] and a map `m` in rank space that knows the gates `g`. Any number of
experts costs two narrow products, and the first one is shared with the router, as in the stacked form.
"""

from abc import abstractmethod
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from moe_adapt.errors import UserError
from moe_adapt.experts.bank import ExpertBank

__all__ = ["RankSpaceBank"]


@dataclass(frozen=True, eq=False, kw_only=True)
class RankSpaceBank(ExpertBank):
    """A bank whose factors are `a` [1, r, d] and `b` [o, 1, r]."""

    @property
    def has_own_factors(self) -> bool:
        """False: the experts share `A` and `B`."""
        return False

    @property
    def no_matrix(self) -> str:
        """Why an expert is no change of weight; nothing if it is one."""
        return ""

    @abstractmethod
    def mix(self, hidden: Tensor, gates: Tensor) -> Tensor:
        """Return what goes up, [..., r].

        Args:
            hidden: `A x`, [..., r].
            gates: Weight of each expert, [..., E].
        """

    def stacks(self, x: Tensor, slots: int | None) -> bool:
        """Return True: the first product is shared with the router."""
        return True

    def __call__(self, x: Tensor, gates: Tensor, base: Tensor, index: Tensor | None = None) -> Tensor:
        """Return `base` [N, o] plus the mixture of the experts for `x` [N, d] and `gates` [N, E]."""
        return self.expand(F.linear(x, self.a[0]), gates, base)

    def expand(self, hidden: Tensor, gates: Tensor, base: Tensor) -> Tensor:
        """Return `base` [N, o] plus the mixture for the hidden vectors `A x` [N, r]."""
        # PEFT's order of operations, so that an expert that changes nothing is its LoRA bit for bit.
        return base + F.linear(self.mix(hidden, gates), self.b[:, 0]) * self.scale

    def own_factors(self) -> ExpertBank:
        """Return a bank with factors of its own for each expert that computes the same.

        Raises:
            UserError: If an expert is no change of weight.
        """
        raise UserError(f"{self.no_matrix}; keep the adapter as it is (`moe-adapt export --form adapter`).")
