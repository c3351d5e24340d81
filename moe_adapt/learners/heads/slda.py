r"""Streaming linear discriminant analysis: class means and one covariance shared by all classes.

$$\Lambda = \big((1-\varepsilon)\,S + \varepsilon I\big)^{-1}, \qquad
\mathrm{score}_c(f) = f^\top \Lambda \mu_c - \tfrac12\, \mu_c^\top \Lambda \mu_c$$

`update="exact"` keeps the pooled within-class scatter by the merge rule of Chan, Golub and LeVeque,
`W += W_batch + n_c m / (n_c + m) (m_b - mu_c)(m_b - mu_c)'`, `S = W / n`: the covariance of the data whatever
their order. `update="streaming"` is the published recursion, sample after sample,

$$(n+1)\, S_{n+1} = n\, S_n + \tfrac{n}{n+1}\, (x - \mu_y)(x - \mu_y)^\top$$

with the count `n` of *all* samples and `mu_y` the mean before the sample, zero for a new class. It takes the
first sample of a class uncentred and depends on the order. Both run on batches; the streaming form gives what
the sample-wise loop gives.

`shrinkage="oas"` takes the oracle-approximating weight, which follows from the covariance and the number of
samples alone, and shrinks towards the mean variance, `tr(S)/d I`, instead of `I`: so it is exact under any
split and order of the data, and scaling the features changes nothing. Ledoit and Wolf's weight needs fourth
moments around means that still move, so it does not follow from sums and is not offered.

Reference: Hayes and Kanan, arXiv 1909.01520. Shrinkage: Chen et al., arXiv 0907.4698.
"""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from moe_adapt.errors import UserError
from moe_adapt.learners.heads.base import LinearHead
from moe_adapt.routing.sample.lda import oas

__all__ = ["Shrinkage", "SldaHead", "shrunk_covariance"]

#: The weight of the identity, or the rule that finds it.
Shrinkage = float | Literal["oas"]


class SldaHead(LinearHead):
    """Linear discriminant analysis that can be updated batch by batch.

    Args:
        width: Number of features, `d`.
        shrinkage: Weight `eps` of the identity in the covariance, in [0, 1], or ``oas`` for the
            oracle-approximating weight of the mean variance.
        rule: ``exact`` for the covariance of all data, ``streaming`` for the published recursion.
    """

    class_axes: ClassVar[dict[str, int]] = {"counts": 0, "means": 0}
    means: Tensor
    scatter: Tensor

    def __init__(
        self, width: int, shrinkage: Shrinkage = 1e-4, rule: Literal["exact", "streaming"] = "exact"
    ) -> None:
        super().__init__(width)
        if shrinkage != "oas" and (isinstance(shrinkage, str) or not 0.0 <= shrinkage <= 1.0):
            raise UserError(
                f"shrinkage is 'oas' or the weight of the identity, between 0 and 1, got {shrinkage!r}."
            )
        if rule not in ("exact", "streaming"):
            raise UserError(f"rule is 'exact' or 'streaming', got {rule!r}.")
        self.shrinkage = shrinkage
        self.rule = rule
        self.add_statistic("means", 0, width)
        self.add_statistic("scatter", width, width)

    def accumulate(self, features: Tensor, labels: Tensor) -> None:
        """Update means and scatter."""
        if self.rule == "streaming":
            self._accumulate_streaming(features, labels)
        else:
            sums, new = self.class_sums(features, labels)
            batch_means = sums / new.clamp(min=1)
            centred = features - batch_means[labels]
            self.scatter = self.scatter + centred.T @ centred
            self._join(batch_means, new)

    def _join(self, means: Tensor, new: Tensor) -> None:
        """Take in `new` [C, 1] samples per class with `means` [C, d], whose own scatter is added already."""
        old = self.counts.unsqueeze(1).double()
        total = (old + new).clamp(min=1)
        step = means - self.means
        self.scatter = self.scatter + (step * (old * new / total)).T @ step
        self.means = self.means + step * (new / total)

    def _accumulate_streaming(self, features: Tensor, labels: Tensor) -> None:
        order = torch.argsort(labels, stable=True)
        grouped = labels[order]
        sizes = torch.bincount(grouped, minlength=self.num_classes)
        starts = (sizes.cumsum(0) - sizes)[grouped]
        rank = torch.arange(len(labels), device=labels.device) - starts
        before = features[order].cumsum(0) - features[order]
        before = before - before[starts]
        seen = self.counts[grouped].double().unsqueeze(1)
        mean_before = (self.means[grouped] * seen + before) / (seen + rank.unsqueeze(1)).clamp(min=1)
        delta = torch.empty_like(features)
        delta[order] = features[order] - mean_before
        n = self.counts.sum() + torch.arange(len(labels), device=labels.device, dtype=torch.float64)
        self.scatter = self.scatter + (delta * (n / (n + 1)).unsqueeze(1)).T @ delta
        sums, new = self.class_sums(features, labels)
        old = self.counts.unsqueeze(1).double()
        self.means = (self.means * old + sums) / (old + new).clamp(min=1)

    def absorb(self, other: "SldaHead") -> None:
        """Take in the other head's statistics.

        Raises:
            UserError: If the rule is ``streaming``, whose result depends on the order of the samples.
        """
        if self.rule == "streaming":
            raise UserError("the streaming recursion depends on the order of samples; merge rule='exact'.")
        pad = self.num_classes - other.num_classes
        means = torch.cat([other.means, other.means.new_zeros(pad, self.width)])
        counts = torch.cat([other.counts, other.counts.new_zeros(pad)])
        self.scatter = self.scatter + other.scatter
        self._join(means, counts.unsqueeze(1).double())

    @property
    def covariance(self) -> Tensor:
        """The covariance shared by all classes, [d, d]."""
        return self.scatter / self.counts.sum().clamp(min=1)

    def solve(self) -> tuple[Tensor, Tensor]:
        """Return `Lambda mu_c` and `-mu_c' Lambda mu_c / 2` of every class.

        Raises:
            UserError: If the covariance is singular.
        """
        factor, failed = torch.linalg.cholesky_ex(self._shrunk())
        if int(failed):
            raise UserError("the covariance is singular; give the head a shrinkage above 0.")
        weight = torch.cholesky_solve(self.means.T, factor).T
        return weight, -0.5 * (weight * self.means).sum(dim=-1)

    @property
    def freedom(self) -> int:
        """Samples beyond the first of every class, at least 1."""
        return max(int(self.counts.sum() - (self.counts > 0).sum()), 1)

    def _shrunk(self) -> Tensor:
        if self.shrinkage == "oas":
            return shrunk_covariance(self.scatter, self.freedom, self.shrinkage)
        eye = torch.eye(self.width, dtype=torch.float64, device=self.scatter.device)
        return (1 - self.shrinkage) * self.covariance + self.shrinkage * eye


def shrunk_covariance(scatter: Tensor, freedom: int, shrinkage: Shrinkage) -> Tensor:
    """Return the covariance of a scatter [d, d], shrunk towards its mean variance times the identity.

    Args:
        scatter: Sum of outer products of centred rows, float64 [d, d]; zero gives the identity.
        freedom: How many independent rows are in it.
        shrinkage: Weight of the mean variance, or ``oas`` for the oracle-approximating one.
    """
    eye = torch.eye(len(scatter), dtype=scatter.dtype, device=scatter.device)
    covariance = scatter / freedom
    level = float(covariance.trace()) / len(scatter)
    if level == 0.0:  # one sample per class: the nearest mean decides
        return eye
    weight = max(oas(covariance, freedom) if shrinkage == "oas" else shrinkage, 1e-6)
    return (1 - weight) * covariance + weight * level * eye
