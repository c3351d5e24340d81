r"""Ridge regression to one-hot labels.

$$G = \sum_i h_i h_i^\top, \quad Q = \sum_i h_i\, e_{y_i}^\top, \quad W = (G + \lambda I)^{-1} Q, \quad
\mathrm{score}(h) = W^\top h$$

A new class is a new column of zeros in `Q`. With `lam` fixed the head does not depend on the order of the
data at all. `moe_adapt.learners.heads.lambda_choice` has the two rules that choose it at the end of a task:

* ``gcv``, the default: cross-validation over everything seen, anew once the samples have grown by a tenth, so
  that 300 equal tasks need 46 eigendecompositions. An older choice would do harm where the samples come to be
  as many as the features: there a lambda that was good before lets the regression fit its noise;
* ``grid``: RanPAC's, on a fifth of the task. RanPAC takes the last fifth as it comes; we draw it with a seed,
  because data sorted by class would leave whole classes out.

Where the spread of the features, the mean of the diagonal of `G` about their mean, is below 1e-4 or above
1e12, the values move with it. So neither the scale of features nor a common offset matters to a chosen
lambda. A number given as `lam` is taken as it is.

Lambda never goes below what float64 can tell from zero beside `G` (its trace times 2.2e-16).

Reference: McDonnell et al., arXiv 2307.02251.
"""

from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from moe_adapt.errors import UserError
from moe_adapt.learners.heads.base import LinearHead
from moe_adapt.learners.heads.lambda_choice import LAMBDA_GRID, cross_validated_cosines, ridge_path_errors

__all__ = ["LambdaRule", "RidgeHead"]

#: How lambda is chosen.
LambdaRule = Literal["gcv", "grid"]

#: Samples seen at a choice by ``gcv``, as a multiple of those at the choice before.
GROWTH = 1.1
#: Between these spreads of the features the values of lambda are those of the grid.
SPREADS = (1e-4, 1e12)


class RidgeHead(LinearHead):
    """Ridge regression on the features.

    Args:
        width: Number of features, `d`.
        lam: The regulariser, or the rule that chooses it from `LAMBDA_GRID`.
        bias: Whether to append a constant feature, which is not regularised less than the others.
        seed: Seed of the split on which ``grid`` chooses.

    Attributes:
        lam: The regulariser in use, a scalar.
        chosen_at: Samples seen when ``gcv`` last chose.
    """

    class_axes: ClassVar[dict[str, int]] = {"counts": 0, "moment": 1}
    gram: Tensor
    moment: Tensor
    lam: Tensor
    chosen_at: Tensor

    def __init__(
        self, width: int, lam: float | LambdaRule = "gcv", bias: bool = False, seed: int = 0
    ) -> None:
        super().__init__(width)
        if isinstance(lam, str) and lam not in ("gcv", "grid"):
            raise UserError(f"lam is a number, 'gcv' or 'grid', got {lam!r}.")
        if not isinstance(lam, str) and lam <= 0:
            raise UserError(f"lam must be positive, got {lam}.")
        self.rule = lam if isinstance(lam, str) else None
        self.bias = bias
        self.seed = seed
        inner = self.inner_width
        self.add_statistic("gram", inner, inner)
        self.add_statistic("moment", inner, 0)
        start = 1.0 if isinstance(lam, str) else lam
        self.register_buffer("lam", torch.tensor(start, dtype=torch.float64))
        self.register_buffer("chosen_at", torch.tensor(0, dtype=torch.int64))

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
        """Choose lambda, if that was asked for and there is something new to choose by.

        Args:
            features: All features of the task that ends, [n, d]; ``grid`` leaves lambda as it is on fewer
                than five.
            labels: Class indices, [n].
        """
        samples = int(self.counts.sum())
        lambdas = self._lambdas()
        if self.rule == "gcv" and samples >= GROWTH * int(self.chosen_at):
            usable = [max(lam, float(self._floor())) for lam in lambdas]
            scores = cross_validated_cosines(self.gram, self.moment, samples, usable)
            self.chosen_at.fill_(samples)
        elif self.rule == "grid" and len(labels) >= 5:
            scores = -self._held_out_errors(features, labels, lambdas)
        else:
            return
        self.lam.fill_(lambdas[int(scores.argmax())])
        self._solution = None

    def _held_out_errors(self, features: Tensor, labels: Tensor, lambdas: list[float]) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(len(labels), generator=generator).to(features.device)
        h = self.embed(features.double())[order]
        targets = F.one_hot(torch.unique(labels, return_inverse=True)[1])[order].double()
        cut = len(labels) - len(labels) // 5
        return ridge_path_errors(h[:cut], targets[:cut], h[cut:], targets[cut:], lambdas)

    def _lambdas(self) -> list[float]:
        """Return the values to try: the grid, moved where the features' spread is small or huge."""
        mean = float(self.gram.diagonal().mean())
        if mean <= 0:
            return list(LAMBDA_GRID)
        centre = self.moment.sum(dim=1).square() / self.counts.sum()
        least = float(self._floor()) / len(self.gram)
        spread = max(float((self.gram.diagonal() - centre).mean()), least)
        scale = spread / min(max(spread, SPREADS[0]), SPREADS[1])
        return [min(lam * scale, 1e8 * mean) for lam in LAMBDA_GRID]

    def _floor(self) -> Tensor:
        return torch.finfo(torch.float64).eps * self.gram.trace()

    def solve(self) -> tuple[Tensor, Tensor]:
        """Return `W'` [C, d'] by a Cholesky factorisation, and no bias."""
        regularised = self.gram.clone()
        regularised.diagonal().add_(torch.maximum(self.lam, self._floor()))
        weight: Any = torch.cholesky_solve(self.moment, torch.linalg.cholesky(regularised)).T
        return weight, torch.zeros_like(weight[:, 0])
