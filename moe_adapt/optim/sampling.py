r"""Which inputs of a layer enter its second moment: all of them at first, a share of them later.

The product `X^T X` over every token is as dear as a good part of a training step, and most of it tells what
is known already. Of a task's tokens the first `4 d` are taken whole, enough for a moment of width `d` to have
full rank; of every later forward a random share `q` is taken and counts `1/q`-fold, so that

$$\mathbb{E}\Big[\sum_{x\ \text{taken}} \tfrac{1}{q}\, x x^T\Big] = \sum_x x x^T$$

and the count of tokens stays what it is. Draws of few rows cost more per row: short steps are left out until
the share comes to 128 rows, which are then taken of one step and stand for all of them. Tokens are drawn, not
strided, because a stride that divides the length of the sequences would take the same positions every time.
The draw depends only on how many tokens of the task there were before, so a resumed run draws the same and
layers that share an input draw alike.
"""

import math

import torch
from torch import Tensor

from moe_adapt.errors import UserError

__all__ = ["WHOLE", "RowSample"]

#: Tokens of a task that are taken whole, per input of the layer.
WHOLE = 4
#: Fewest rows of a draw, unless a step has fewer.
LEAST = 128


class RowSample:
    """Draws rows of a task's inputs.

    Args:
        width: Width of the rows, `d`.
        share: Share of the rows that is taken after the first ones, in (0, 1]; 1 takes all.

    Raises:
        UserError: If the share is out of range.

    >>> sample = RowSample(width=8, share=0.25)
    >>> positions, weight = sample.chosen(32)
    >>> positions is None, weight
    (True, 1.0)
    >>> positions, weight = sample.chosen(1024)
    >>> len(positions), weight
    (256, 4.0)
    """

    def __init__(self, width: int, share: float = 1 / 16) -> None:
        if not 0 < share <= 1:
            raise UserError(f"the share of tokens to observe is in (0, 1], got {share}.")
        self.width, self.share = width, share
        self.begin_task()

    def begin_task(self) -> None:
        """Start counting tokens again."""
        self.seen = self.pending = 0

    def chosen(self, count: int) -> tuple[Tensor | None, float]:
        """Return positions of the rows to take of the next `count`, None for all, and what each counts."""
        before, self.seen = self.seen, self.seen + count
        if self.share == 1 or before < WHOLE * self.width:
            return None, 1.0
        self.pending += count
        taken = min(math.ceil(self.share * self.pending), count)
        if taken < min(LEAST, count):
            return torch.empty(0, dtype=torch.int64), 1.0
        weight, self.pending = self.pending / taken, 0
        generator = torch.Generator().manual_seed(before)
        return torch.randperm(count, generator=generator)[:taken], weight
