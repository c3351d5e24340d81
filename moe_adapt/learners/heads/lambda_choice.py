r"""How a ridge regression gets its lambda: two rules, each from one eigendecomposition for all values.

**Held-out fifth of a task**, RanPAC's rule: fit on 80 % of the task's features, take the value with the least
squared error on the rest.

$$\hat Y_{val} = K_{val}\, U (\Lambda + \lambda)^{-1} U^\top Y, \qquad H H^\top = U \Lambda U^\top$$

It sees the classes of one task only. With two classes of five samples it decides on two samples.

**Generalised cross-validation over everything seen**, ours. The prediction for a sample that was left
out is $(\hat y_i - h_i y_i) / (1 - h_i)$ with its leverage $h_i$; with the mean leverage $h =
\mathrm{df} / n$ in place of $h_i$ (Golub, Heath and Wahba, 1979) all of it follows from `G` and `Q`, so
no sample is kept. We take the lambda with the largest *cosine* between those predictions and the labels
rather than the least squared error: a class is an argmax, which no scale changes, while over hundreds of
classes the squared error rewards predictions that are nearly zero.

$$G = U \Lambda U^\top, \quad A = \lVert U^\top Q \rVert^2_{rows}, \quad
a = \sum_j \frac{A_j}{\Lambda_j + \lambda}, \quad b = \sum_j \frac{A_j \Lambda_j}{(\Lambda_j + \lambda)^2},
\quad \cos = \frac{a - h n}{\sqrt{n\,(b - 2 h a + h^2 n)}}$$

Reference: McDonnell et al., arXiv 2307.02251.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["LAMBDA_GRID", "cross_validated_cosines", "ridge_path_errors"]

#: The values of lambda that RanPAC tries.
LAMBDA_GRID = tuple(10.0**power for power in range(-8, 9))


def ridge_path_errors(
    fit: Tensor, targets: Tensor, held_out: Tensor, held_out_targets: Tensor, lambdas: Sequence[float]
) -> Tensor:
    """Return the mean squared error on held-out rows for every lambda, [V].

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


def cross_validated_cosines(gram: Tensor, moment: Tensor, samples: int, lambdas: Sequence[float]) -> Tensor:
    """Return the cosine between left-out predictions and one-hot labels for every lambda, [V].

    Minus infinity where the regression has as many degrees of freedom as there are samples.

    Args:
        gram: `G`, [d, d].
        moment: `Q`, [d, C].
        samples: Number of samples in them, `n`.
        lambdas: The values to try, all positive.
    """
    values, vectors = torch.linalg.eigh(gram)
    values, energy = values.clamp(min=0), (vectors.T @ moment).square().sum(dim=1)
    found = []
    for lam in lambdas:
        shrunk = values + lam
        leverage = (values / shrunk).sum() / samples
        a, b = (energy / shrunk).sum(), (energy * values / shrunk.square()).sum()
        length = (samples * (b - 2 * leverage * a + leverage**2 * samples)).clamp(min=0).sqrt()
        cosine = (a - leverage * samples) / length
        known = (leverage < 1 - 1e-9) & (length > 0)
        found.append(torch.where(known, cosine, float("-inf")))
    return torch.stack(found)
