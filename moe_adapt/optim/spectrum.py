r"""The eigen-decomposition of a second moment, and the filters that update rules make of it.

Every rule here multiplies an update of weights [.., d] from the right by one symmetric matrix

$$F = s\,\big(I - V\, \mathrm{diag}(1 - g)\, V^T\big)$$

for eigenvectors `V` of the inputs' second moment: the gain `g = 0` forbids a direction, `g = 1` leaves it
alone, and a direction outside `V` passes with the scale `s`.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from moe_adapt.errors import UserError

__all__ = ["Energy", "SpectralFilter", "Spectrum"]

#: What "energy" counts: eigenvalues of the second moment, or their squares.
Energy = Literal["variance", "sigma_sq"]


@dataclass(frozen=True)
class Spectrum:
    """Leading eigenpairs of a second moment `C` [d, d].

    Attributes:
        values: Eigenvalues, descending, not negative, [k].
        vectors: Their eigenvectors, [d, k].
        trace: Trace of `C`, also of what the leading pairs leave out.
    """

    values: Tensor
    vectors: Tensor
    trace: float

    @classmethod
    def of(cls, moment: Tensor) -> "Spectrum":
        """Decompose a symmetric matrix [d, d]."""
        values, vectors = torch.linalg.eigh(moment)
        return cls(values.flip(0).clamp(min=0), vectors.flip(1), float(moment.diagonal().sum()))

    @classmethod
    def of_rows(cls, rows: Tensor, count: float) -> "Spectrum":
        """Decompose `rows^T rows / count` for few rows [m, d]; directions without energy are left out."""
        _, singular, right = torch.linalg.svd(rows, full_matrices=False)
        values = singular.square() / count
        kept = values > torch.finfo(values.dtype).eps * values.max() if len(values) else values > 0
        return cls(values[kept], right[kept].t(), float(values.sum()))

    @property
    def width(self) -> int:
        """Width of the inputs, `d`."""
        return self.vectors.shape[0]

    @property
    def mean(self) -> float:
        """Mean eigenvalue `tr(C) / d`: the unit in which a regulariser is free of units."""
        return self.trace / self.width

    def rank(self, delta: float, energy: Energy = "variance") -> int:
        """Return the fewest leading directions that hold the share `delta` of the energy.

        Args:
            delta: Share of the energy, in (0, 1].
            energy: What is summed.

        >>> Spectrum(torch.tensor([3.0, 1.0]), torch.eye(2), 4.0).rank(0.8), \
            Spectrum(torch.tensor([3.0, 1.0]), torch.eye(2), 4.0).rank(0.8, "sigma_sq")
        (2, 1)
        """
        if not 0 < delta <= 1:
            raise UserError(f"the share of energy is in (0, 1], got {delta}.")
        weights = self.values if energy == "variance" else self.values.square()
        total = weights.sum()
        if total <= 0:
            return 0
        share = (weights / total).cumsum(0)
        return min(int((share < delta - 1e-6).sum()) + 1, len(weights))

    def leading(self, delta: float, energy: Energy = "sigma_sq") -> "Spectrum":
        """Return the fewest leading pairs that hold the share `delta` of the energy."""
        rank = self.rank(delta, energy)
        return Spectrum(self.values[:rank], self.vectors[:, :rank], self.trace)


@dataclass(frozen=True)
class SpectralFilter:
    """A symmetric matrix that updates are multiplied with from the right.

    Attributes:
        vectors: Orthonormal directions, [d, k].
        gains: Gain in each of them, [k].
        scale: Gain everywhere else.
    """

    vectors: Tensor
    gains: Tensor
    scale: float = 1.0

    def __post_init__(self) -> None:
        width, rank = self.vectors.shape
        dense = None
        if 2 * rank > width:  # then one product with the matrix is cheaper than two with its factors
            dense = (self.vectors * (self.gains - self.scale)) @ self.vectors.t()
            dense.diagonal().add_(self.scale)
        object.__setattr__(self, "_dense", dense)

    def __call__(self, update: Tensor) -> Tensor:
        """Return `update F` for an update [..., d], in the update's dtype."""
        dense: Tensor | None = self._dense  # type: ignore[attr-defined]
        value = update.to(self.vectors.dtype)
        if dense is not None:
            return (value @ dense).to(update.dtype)
        moved = ((value @ self.vectors) * (self.gains - self.scale)) @ self.vectors.t()
        return (self.scale * value + moved).to(update.dtype)
