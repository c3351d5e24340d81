r"""Frequent Directions: a second moment in `l` rows where the full matrix would not fit.

A buffer `B` [2 l, d] takes rows until it is full; then its singular values are shrunk by the `l`-th one,

$$B = U S V^T, \qquad B \leftarrow \sqrt{\max(S^2 - s_l^2, 0)}\, V^T,$$

which frees half of it. For the rows `X` seen so far, `0 <= X^T X - B^T B <= ||X||_F^2 / l` as matrices,
whatever their order; two sketches merge by feeding the rows of one to the other.

Reference:
    Ghashami, Liberty, Phillips, Woodruff, "Frequent Directions", SIAM J. Comput. 2016, arXiv 1501.01711.
"""

import torch
from torch import Tensor, nn

from moe_adapt.errors import UserError

__all__ = ["FrequentDirections", "shrink_rows"]


def shrink_rows(rows: Tensor, keep: int) -> Tensor:
    """Return at most `keep` rows whose second moment is that of `rows`, less the `keep`-th eigenvalue.

    Args:
        rows: Rows, [m, d].
        keep: Rows to return, `l`; all of them come back if `m <= l`.

    >>> shrink_rows(torch.diag(torch.tensor([3.0, 2.0, 1.0])), keep=2).square().sum()
    tensor(5.)
    """
    if len(rows) <= keep:
        return rows
    # The small Gram matrix has the same spectrum as the large one, at a fraction of its cost.
    values, left = torch.linalg.eigh(rows @ rows.t())
    values, left = values.flip(0)[:keep].clamp(min=0), left.flip(1)[:, :keep]
    shrunk = (values - values[-1]).clamp(min=0)
    gain = torch.where(values > 0, (shrunk / values.clamp(min=torch.finfo(rows.dtype).tiny)).sqrt(), 0.0)
    return gain[:, None] * (left.t() @ rows)


class FrequentDirections(nn.Module):
    """A sketch of the second moment `sum x x^T` of a stream of rows.

    Args:
        width: Width of the rows, `d`.
        rank: Directions kept, `l`.

    Raises:
        UserError: If `rank` is less than one.
    """

    rows: Tensor
    filled: Tensor

    def __init__(self, width: int, rank: int = 256) -> None:
        super().__init__()
        if rank < 1:
            raise UserError(f"a sketch keeps at least one direction, got rank={rank}.")
        self.rank = rank
        self.register_buffer("rows", torch.zeros(2 * rank, width))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))

    def update(self, rows: Tensor) -> None:
        """Add rows, [N, d]."""
        size, filled = len(self.rows), int(self.filled)
        rows = rows.to(self.rows)
        while len(rows):
            if filled == size:
                kept = shrink_rows(self.rows, self.rank)
                # The last kept row has been shrunk to zero.
                filled = self.rank - 1
                self.rows.zero_()
                self.rows[:filled] = kept[:filled]
            taken = rows[: size - filled]
            self.rows[filled : filled + len(taken)] = taken
            filled, rows = filled + len(taken), rows[len(taken) :]
        self.filled.fill_(filled)

    def content(self) -> Tensor:
        """Return the rows of the sketch, [m, d]; their second moment is the estimate."""
        return self.rows[: int(self.filled)]

    def clear(self) -> None:
        """Forget everything."""
        self.rows.zero_()
        self.filled.zero_()
