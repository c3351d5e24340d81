r"""FeCAM: Mahalanobis distance with a covariance per class, normalised to a correlation matrix.

$$S \leftarrow S_c + \gamma_1 V_1 I + \gamma_2 V_2 (\mathbf{1} - I), \qquad
R_{ij} = \frac{S_{ij}}{\sqrt{S_{ii} S_{jj}}}, \qquad
\mathrm{score}_c(f) = -(\tilde f - \tilde\mu_c)^\top R_c^{-1} (\tilde f - \tilde\mu_c)$$

with `V1` the mean of the diagonal, `V2` that of the rest, and the tilde for scaling to length one. The
defaults are the paper's for vision transformers: features of length one, no power transform, `gamma2 = 0`.
`shared=True` keeps one covariance for all classes: `d^2` numbers instead of `C d^2`.

Reference: Goswami et al., arXiv 2309.14062.
"""

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from moe_adapt.errors import UserError
from moe_adapt.learners.heads.base import ClosedFormHead, direction

__all__ = ["FeCamHead", "correlation"]

#: Feature differences handled at once when scoring, in numbers.
_CHUNK = 2**24


def correlation(covariance: Tensor, gamma1: float, gamma2: float) -> Tensor:
    """Return the shrunk covariances as correlation matrices, [..., d, d].

    Args:
        covariance: Covariances, [..., d, d].
        gamma1: Shrinkage of the diagonal, in units of its mean.
        gamma2: Shrinkage of the rest, in units of its mean.

    >>> correlation(torch.diag(torch.tensor([1.0, 4.0])), 0.0, 0.0)
    tensor([[1., 0.],
            [0., 1.]])
    """
    width = covariance.shape[-1]
    eye = torch.eye(width, dtype=covariance.dtype, device=covariance.device)
    diagonal = covariance.diagonal(dim1=-2, dim2=-1)
    v1 = diagonal.mean(dim=-1)[..., None, None]
    rest = covariance.sum(dim=(-2, -1)) - diagonal.sum(dim=-1)
    v2 = (rest / max(width * (width - 1), 1))[..., None, None]
    shrunk = covariance + gamma1 * v1 * eye + gamma2 * v2 * (1 - eye)
    scale = shrunk.diagonal(dim1=-2, dim2=-1).rsqrt()
    return shrunk * scale[..., :, None] * scale[..., None, :]


class _Solution(NamedTuple):
    means: Tensor
    whitening: Tensor


class FeCamHead(ClosedFormHead):
    """A Gaussian per class, with covariances that are shrunk and normalised.

    Args:
        width: Number of features, `d`.
        gamma1: Shrinkage of the diagonal.
        gamma2: Shrinkage of the rest of the covariance.
        tukey: Exponent of a power transform of the features, 0.5 for the ReLU features of a ResNet; None
            for none.
        shared: Whether all classes share one covariance.
    """

    class_axes: ClassVar[dict[str, int]] = {"counts": 0, "means": 0}
    means: Tensor
    scatter: Tensor

    def __init__(
        self,
        width: int,
        gamma1: float = 1.0,
        gamma2: float = 0.0,
        tukey: float | None = None,
        shared: bool = False,
    ) -> None:
        super().__init__(width)
        if gamma1 < 0 or gamma2 < 0:
            raise UserError(f"shrinkages are not negative, got gamma1={gamma1} and gamma2={gamma2}.")
        if not shared:
            self.class_axes = {**type(self).class_axes, "scatter": 0}  # type: ignore[misc]
        self.gamma1 = gamma1
        self.gamma2 = gamma2
        self.tukey = tukey
        self.shared = shared
        self.add_statistic("means", 0, width)
        self.add_statistic("scatter", 1 if shared else 0, width, width)

    def embed(self, features: Tensor) -> Tensor:
        """Return the features as the Gaussians see them, [B, d].

        Raises:
            UserError: If a power transform meets a negative feature.
        """
        if self.tukey is not None:
            if bool((features < 0).any()):
                raise UserError(
                    "the power transform (tukey) needs features that are not negative, such as those after "
                    "a ReLU; leave it out for a transformer."
                )
            features = features.pow(self.tukey)
        return direction(features)

    def accumulate(self, features: Tensor, labels: Tensor) -> None:
        """Update means and scatter."""
        used = self.embed(features)
        sums, new = self.class_sums(used, labels)
        means = sums / new.clamp(min=1)
        centred = used - means[labels]
        if self.shared:
            self.scatter = self.scatter + centred.T @ centred
        else:
            for c in labels.unique():
                rows = centred[labels == c]
                self.scatter[c].addmm_(rows.T, rows)
        self._join(means, new)

    def _join(self, means: Tensor, new: Tensor) -> None:
        old = self.counts.unsqueeze(1).double()
        total = (old + new).clamp(min=1)
        step = means - self.means
        weighted = step * (old * new / total)
        if self.shared:
            self.scatter = self.scatter + weighted.T @ step
        else:
            for c in (new.squeeze(1) > 0).nonzero().squeeze(1):
                self.scatter[c].addr_(weighted[c], step[c])
        self.means = self.means + step * (new / total)

    def absorb(self, other: "FeCamHead") -> None:
        """Take in the other head's statistics.

        Raises:
            UserError: If one head shares its covariance and the other does not.
        """
        if other.shared != self.shared:
            raise UserError("a head with one covariance and a head with one per class cannot be merged.")
        pad = self.num_classes - other.num_classes
        means = torch.cat([other.means, other.means.new_zeros(pad, self.width)])
        counts = torch.cat([other.counts, other.counts.new_zeros(pad)])
        self.scatter[: len(other.scatter)] += other.scatter
        self._join(means, counts.unsqueeze(1).double())

    def solve(self) -> _Solution:
        """Return means and `L^-1` of the correlation matrices `R = L L'`; a class of one sample has `R = I`.

        Raises:
            UserError: If a covariance is singular.
        """
        eye = torch.eye(self.width, dtype=torch.float64, device=self.scatter.device)
        whitening = torch.empty_like(self.scatter)
        counts = self.counts.sum().view(1) if self.shared else self.counts
        for index, (scatter, count) in enumerate(zip(self.scatter, counts.tolist(), strict=True)):
            if not bool(scatter.any()):
                whitening[index] = eye
                continue
            correlated = correlation(scatter / max(count - 1, 1), self.gamma1, self.gamma2)
            factor, failed = torch.linalg.cholesky_ex(correlated)
            if int(failed):
                raise UserError(f"the covariance of class {index} is singular; give FeCAM a gamma1 above 0.")
            whitening[index] = torch.linalg.solve_triangular(factor, eye, upper=False)
        return _Solution(direction(self.means), whitening)

    def score(self, features: Tensor, solution: _Solution) -> Tensor:
        """Return negative squared Mahalanobis distances, [B, C]."""
        used = self.embed(features)
        means, whitening = solution
        if self.shared:
            return -torch.cdist(used @ whitening[0].T, means @ whitening[0].T).square()
        columns = []
        step = max(1, _CHUNK // max(used.numel(), 1))
        for start in range(0, len(means), step):
            maps = whitening[start : start + step]
            white = torch.einsum("bd,ced->bce", used, maps)
            centre = torch.einsum("cd,ced->ce", means[start : start + step], maps)
            columns.append(-(white - centre).square().sum(dim=-1))
        return torch.cat(columns, dim=1)
