r"""Moments of one expert's examples: their number, mean and scatter, and nothing else of them.

The scatter $S = \sum_i (x_i - m)(x_i - m)^\top$ is kept as a factor `F` with $F^\top F = S$ of at most
`min(n - 1, d)` rows, the triangle of a QR decomposition: for few examples it takes far less than `d^2`
numbers. Moments of two sets add up,

$$S = S_1 + S_2 + \tfrac{n_1 n_2}{n_1 + n_2} (m_1 - m_2)(m_1 - m_2)^\top,$$

so that examples may come in batches. Everything is float64.

Reference: Chan, Golub and LeVeque, "Algorithms for Computing the Sample Variance", The American Statistician
37 (1983).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from moe_adapt.errors import UserError

__all__ = ["Moments"]


@dataclass(frozen=True)
class Moments:
    """Number, mean and scatter of a set of vectors.

    Attributes:
        count: How many vectors, `n`.
        mean: Their mean, float64 [d].
        factor: `F` with `F^T F` their scatter around the mean, float64 [m, d], `m <= min(n - 1, d)`.

    >>> moments = Moments.of(torch.tensor([[0.0, 1.0], [2.0, 1.0]]))
    >>> moments.count, moments.mean.tolist(), moments.scatter().round(decimals=6).abs().tolist()
    (2, [1.0, 1.0], [[2.0, 0.0], [0.0, 0.0]])
    """

    count: int
    mean: Tensor
    factor: Tensor

    @classmethod
    def of(cls, features: Tensor) -> "Moments":
        """Return the moments of vectors.

        Args:
            features: [n, d].

        Raises:
            UserError: If there is none, or one is not finite.
        """
        if features.ndim != 2 or not len(features):
            raise UserError("an expert needs examples of what it is for; give at least one text.")
        x = features.detach().cpu().double()
        if not torch.isfinite(x).all():
            raise UserError("an example's features are not finite; look for broken weights or texts.")
        mean = x.mean(dim=0)
        return cls(len(x), mean, _triangle(x - mean, len(x)))

    def __add__(self, other: "Moments") -> "Moments":
        if other.mean.shape != self.mean.shape:
            raise UserError(
                f"the examples have {len(other.mean)} features, those before had {len(self.mean)}; take the "
                "same layer of the same model."
            )
        count = self.count + other.count
        step = other.mean - self.mean
        between = step * (self.count * other.count / count) ** 0.5
        rows = torch.cat([self.factor, other.factor, between[None]])
        return Moments(count, self.mean + step * (other.count / count), _triangle(rows, count))

    def scatter(self) -> Tensor:
        """Return the sum of the outer products around the mean, [d, d]."""
        return self.factor.t() @ self.factor


def _triangle(rows: Tensor, count: int) -> Tensor:
    """Return a factor of the same scatter with at most `min(count - 1, d)` rows."""
    keep = min(count - 1, rows.shape[1])
    if keep == 0:
        return rows.new_zeros(0, rows.shape[1])
    return torch.linalg.qr(rows, mode="r").R[:keep].contiguous()
