r"""Moments of one expert's examples: numbers and means of their classes, and the scatter around these.

The scatter $S = \sum_i (x_i - m_{c(i)})(x_i - m_{c(i)})^\top$ is kept as a factor `F` with $F^\top F = S$ of
at most `min(n - C, d)` rows, the triangle of a QR decomposition: for few examples it takes far less than
`d^2` numbers. Moments of two sets add up, class by class,

$$S = S_1 + S_2 + \sum_c \tfrac{n_{1c} n_{2c}}{n_{1c} + n_{2c}} (m_{1c} - m_{2c})(m_{1c} - m_{2c})^\top,$$

so that examples may come in batches. Residuals of `n` vectors around their mean have `n - 1` directions:
contrasts of each vector with the mean of those before it span them, whatever the vectors are. Everything is
float64.

Reference: Chan, Golub and LeVeque, "Algorithms for Computing the Sample Variance", The American Statistician
37 (1983).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from moe_adapt.errors import UserError
from moe_adapt.routing.sample.classes import WHOLE

__all__ = ["Moments"]


@dataclass(frozen=True)
class Moments:
    """Numbers and means of classes of vectors, and the scatter within them.

    Attributes:
        classes: Number of each class, ascending, int64 [C].
        counts: How many vectors each has, int64 [C].
        means: Their means, float64 [C, d].
        factor: `F` with `F^T F` the scatter around the means, float64 [m, d], `m <= min(n - C, d)`.

    >>> moments = Moments.of(torch.tensor([[0.0, 1.0], [2.0, 1.0]]))
    >>> moments.count, moments.means.tolist(), moments.scatter().round(decimals=6).abs().tolist()
    (2, [[1.0, 1.0]], [[2.0, 0.0], [0.0, 0.0]])
    """

    classes: Tensor
    counts: Tensor
    means: Tensor
    factor: Tensor

    @classmethod
    def of(cls, features: Tensor, keys: Tensor | None = None) -> "Moments":
        """Return the moments of vectors.

        Args:
            features: [n, d].
            keys: Class of each, int64 [n]; None takes them for one class.

        Raises:
            UserError: If there is none, or one is not finite.
        """
        if features.ndim != 2 or not len(features):
            raise UserError("an expert needs examples of what it is for; give at least one text.")
        x = features.detach().cpu().double()
        if not torch.isfinite(x).all():
            raise UserError("an example's features are not finite; look for broken weights or texts.")
        keys = torch.full((len(x),), WHOLE, dtype=torch.int64) if keys is None else keys
        classes = keys.unique()
        own = [x[keys == key] for key in classes]
        means = torch.stack([rows.mean(dim=0) for rows in own])
        contrasts = [_contrasts(rows - mean) for rows, mean in zip(own, means, strict=True)]
        counts = torch.tensor([len(rows) for rows in own])
        return cls(classes, counts, means, _triangle(torch.cat(contrasts)))

    @property
    def count(self) -> int:
        """How many vectors, `n`."""
        return int(self.counts.sum())

    @property
    def freedom(self) -> int:
        """In how many directions vectors can differ from their means, `n - C`."""
        return self.count - len(self.classes)

    def __add__(self, other: "Moments") -> "Moments":
        width = self.means.shape[1]
        if other.means.shape[1] != width:
            raise UserError(
                f"the examples have {other.means.shape[1]} features, those before had {width}; take the "
                "same layer of the same model."
            )
        classes = torch.cat([self.classes, other.classes]).unique()
        (n, m), (n2, m2) = self._at(classes), other._at(classes)
        counts = n + n2
        step = torch.where((n > 0)[:, None], m2 - m, m2)
        means = m + torch.where((n2 > 0)[:, None], step * (n2 / counts)[:, None], 0.0)
        between = (step * (n * n2 / counts).sqrt()[:, None])[(n > 0) & (n2 > 0)]
        rows = torch.cat([self.factor, other.factor, between])
        return Moments(classes, counts.long(), means, _triangle(rows))

    def _at(self, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Return counts and means by classes, float64; zeros where there is none."""
        places = torch.searchsorted(classes, self.classes)
        counts = torch.zeros(len(classes), dtype=torch.float64)
        means = torch.zeros(len(classes), self.means.shape[1], dtype=torch.float64)
        counts[places], means[places] = self.counts.double(), self.means
        return counts, means

    def fits(self) -> bool:
        """Return whether the shapes belong together."""
        kinds = self.classes.shape == self.counts.shape == self.means.shape[:1]
        return (
            kinds and self.means.ndim == self.factor.ndim == 2 and self.factor.shape[1] == self.means.shape[1]
        )

    def scatter(self) -> Tensor:
        """Return the sum of the outer products around the means, [d, d]."""
        return self.factor.t() @ self.factor


def _contrasts(residuals: Tensor) -> Tensor:
    """Return `n - 1` vectors with the scatter of `n` residuals around their mean."""
    before = torch.arange(1, len(residuals), dtype=torch.float64)[:, None]
    steps = residuals.cumsum(dim=0)[:-1] - before * residuals[1:]
    return steps / (before * (before + 1)).sqrt()


def _triangle(rows: Tensor) -> Tensor:
    """Return a factor of the same scatter with at most as many rows as columns."""
    return torch.linalg.qr(rows, mode="r").R.contiguous() if len(rows) else rows
