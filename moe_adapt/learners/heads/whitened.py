r"""Nearest class mean by the cosine in a whitened space, over one or several layers of an encoder.

$$\mathrm{score}_c(f) = \cos\big(L^{-1}(\tilde f - g),\ L^{-1}(\tilde\mu_c - g)\big), \qquad
L L^\top = (1 - \rho)\, S + \rho\, \tfrac{\mathrm{tr} S}{d}\, I$$

with the pooled within-class covariance `S` of `moe_adapt.learners.heads.slda`, the mean `g` of the class
means, and the tilde for every layer scaled to length one. Linear discriminants subtract half the squared
length of a class mean. With few samples that length is mostly the noise of the mean, `d / n` in the whitened
space. The cosine drops it. All of it follows from SLDA's sums, so it is exact in any split and order.

Departures: Liu whitens with a covariance from all of the data; ours is shrunk, over layers of equal length
(second-order statistics of several layers follow LayUP), and grows with the stream. The default shrinkage was
chosen on held-out training rows of four streams; between 0.2 and 0.5 it changes little.

Reference: Liu, "The Bayes decision rule induced similarity measures", IEEE TPAMI 29(6), 2007; Ahrens et al.,
arXiv 2312.08888.
"""

import torch
from torch import Tensor

from moe_adapt.errors import UserError
from moe_adapt.learners.heads.base import direction
from moe_adapt.learners.heads.slda import Shrinkage, SldaHead, shrunk_covariance

__all__ = ["WhitenedMeanHead"]


class WhitenedMeanHead(SldaHead):
    """Scores a class by the cosine between feature and class mean, both centred and whitened.

    Args:
        width: Number of features, `d`.
        shrinkage: Weight of the mean variance in the covariance, in [0, 1], or ``oas`` for the
            oracle-approximating weight. Higher: closer to the nearest mean by cosine.
        layers: How many layers of equal width the features hold side by side.

    Raises:
        UserError: If the features cannot be cut into that many layers.
    """

    def __init__(self, width: int, shrinkage: Shrinkage = 0.4, layers: int = 1) -> None:
        super().__init__(width, shrinkage)
        if layers < 1 or width % layers:
            raise UserError(f"layers={layers} must be at least 1 and divide the {width} features.")
        self.layers = layers

    def embed(self, features: Tensor) -> Tensor:
        """Return the features with every layer scaled to length one, [B, d]."""
        return direction(features.unflatten(-1, (self.layers, -1))).flatten(-2)

    def accumulate(self, features: Tensor, labels: Tensor) -> None:
        """Update means and scatter of the scaled features."""
        super().accumulate(self.embed(features), labels)

    def absorb(self, other: SldaHead) -> None:
        """Take in the other head's statistics.

        Raises:
            UserError: If the two heads cut their features into different layers.
        """
        if not isinstance(other, WhitenedMeanHead) or other.layers != self.layers:
            raise UserError("heads whose features hold different numbers of layers cannot be merged.")
        super().absorb(other)

    def solve(self) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        """Return the centre [d], the factor `L` [d, d] and the directions of the classes [C, d]."""
        centre = self.means[self.counts > 0].mean(dim=0)
        factor = torch.linalg.cholesky(shrunk_covariance(self.scatter, self.freedom, self.shrinkage))
        return centre, factor, _whitened(self.means - centre, factor)

    def score(self, features: Tensor, solution: tuple[Tensor, Tensor, Tensor]) -> Tensor:  # type: ignore[override]
        """Return cosines [B, C]."""
        centre, factor, classes = solution
        return _whitened(self.embed(features) - centre, factor) @ classes.T


def _whitened(rows: Tensor, factor: Tensor) -> Tensor:
    """Return the directions of `L^-1 x` for rows x [N, d]."""
    return direction(torch.linalg.solve_triangular(factor, rows.T, upper=False).T)
