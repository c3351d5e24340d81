r"""Ridge regression to one-hot labels.

$$G = \sum_i h_i h_i^\top, \quad Q = \sum_i h_i\, e_{y_i}^\top, \quad W = (G + \lambda I)^{-1} Q, \quad
\mathrm{score}(h) = W^\top h$$

A new class is a new column of zeros in `Q`. With `lam` fixed the head does not depend on the order of the
data at all. With `lam="grid"` lambda is chosen at the end of each task, as RanPAC does: fit on 80 % of the
task's features, take the value with the least squared error on the rest. All values share **one**
eigendecomposition, of the smaller of the two Gram matrices:

$$\hat Y_{val} = K_{val}\, U (\Lambda + \lambda)^{-1} U^\top Y, \qquad H H^\top = U \Lambda U^\top$$

Departure: RanPAC takes the last fifth of a task as it comes; we draw the fifth with a seed, because data
sorted by class would leave whole classes out. Lambda never goes below what float64 can tell from zero beside
`G` (its trace times 2.2e-16).

Reference: McDonnell et al., arXiv 2307.02251.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from moe_adapt.errors import UserError
from moe_adapt.learners.heads.base import HEADS, LinearHead

__all__ = ["LAMBDA_GRID", "RidgeHead", "ridge_path_errors"]

#: The values of lambda that RanPAC tries.
LAMBDA_GRID = tuple(10.0**power for power in range(-8, 9))


def ridge_path_errors(
    fit: Tensor, targets: Tensor, held_out: Tensor, held_out_targets: Tensor, lambdas: Sequence[float]
) -> Tensor:
    """Return the mean squared error on held-out rows for every lambda, from one eigendecomposition, [V].

    Args:
        fit: Rows to fit on, [n, d].
        targets: Their targets, [n, C].
        held_out: Rows to predict, [m, d].
        held_out_targets: Their targets, [m, C].
        lambdas: The values to try, all positive.
    """
    if len(fit) <= fit.shape[1]:
        values, vectors = torch.linalg.eigh(fit @ fit.T)
        left, right = held_out @ (fit.T @ vectors), vectors.T @ targets
    else:
        values, vectors = torch.linalg.eigh(fit.T @ fit)
        left, right = held_out @ vectors, vectors.T @ (fit.T @ targets)
    values = values.clamp(min=0)
    errors = [F.mse_loss(left @ (right / (values + lam).unsqueeze(1)), held_out_targets) for lam in lambdas]
    return torch.stack(errors)


@HEADS.register("ridge")
class RidgeHead(LinearHead):
    """Ridge regression on the features.

    Args:
        width: Number of features, `d`.
        lam: The regulariser, or ``grid`` to choose it from `LAMBDA_GRID` at the end of each task.
        bias: Whether to append a constant feature, which is not regularised less than the others.
        seed: Seed of the split on which lambda is chosen.

    Attributes:
        lam: The regulariser in use, a scalar.
    """

    class_axes: ClassVar[dict[str, int]] = {"counts": 0, "moment": 1}
    gram: Tensor
    moment: Tensor
    lam: Tensor

    def __init__(
        self, width: int, lam: float | Literal["grid"] = "grid", bias: bool = False, seed: int = 0
    ) -> None:
        super().__init__(width)
        if isinstance(lam, str) and lam != "grid":
            raise UserError(f"lam is a number or 'grid', got {lam!r}.")
        if not isinstance(lam, str) and lam <= 0:
            raise UserError(f"lam must be positive, got {lam}.")
        self.choose_lambda = lam == "grid"
        self.bias = bias
        self.seed = seed
        inner = self.inner_width
        self.add_statistic("gram", inner, inner)
        self.add_statistic("moment", inner, 0)
        start = 1.0 if isinstance(lam, str) else lam
        self.register_buffer("lam", torch.tensor(start, dtype=torch.float64))

    @property
    def inner_width(self) -> int:
        """Number of columns of the regression, `d'`."""
        return self.width + int(self.bias)

    def embed(self, features: Tensor) -> Tensor:
        """Return what is regressed on, [B, d']."""
        return F.pad(features, (0, 1), value=1.0) if self.bias else features

    def accumulate(self, features: Tensor, labels: Tensor) -> None:
        """Add the batch to `G` and `Q`."""
        h = self.embed(features)
        self.gram.addmm_(h.T, h)
        self.moment = self.moment.index_add(1, labels, h.T)

    def absorb(self, other: "RidgeHead") -> None:
        """Add the other head's `G` and `Q`; lambda stays."""
        self.gram += other.gram
        self.moment[:, : other.num_classes] += other.moment

    @torch.no_grad()
    def end_task(self, features: Tensor, labels: Tensor) -> None:
        """Choose lambda on the features of the task that ends, if that was asked for.

        Args:
            features: All features of the task, [n, d]; fewer than five rows leave lambda as it is.
            labels: Class indices, [n].
        """
        if not self.choose_lambda or len(labels) < 5:
            return
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(len(labels), generator=generator).to(features.device)
        h = self.embed(features.double())[order]
        targets = F.one_hot(torch.unique(labels, return_inverse=True)[1])[order].double()
        cut = len(labels) - len(labels) // 5
        errors = ridge_path_errors(h[:cut], targets[:cut], h[cut:], targets[cut:], LAMBDA_GRID)
        self.lam = self.lam.new_tensor(LAMBDA_GRID[int(errors.argmin())])
        self._solution = None

    def solve(self) -> tuple[Tensor, Tensor]:
        """Return `W'` [C, d'] by a Cholesky factorisation, and no bias."""
        floor = torch.finfo(torch.float64).eps * self.gram.trace()
        regularised = self.gram + torch.maximum(self.lam, floor) * torch.eye(
            len(self.gram), dtype=torch.float64, device=self.gram.device
        )
        weight: Any = torch.cholesky_solve(self.moment, torch.linalg.cholesky(regularised)).T
        return weight, torch.zeros_like(weight[:, 0])
