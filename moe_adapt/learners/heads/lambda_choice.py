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

$$E_j = \frac{\lVert u_j^\top Q \rVert^2}{\Lambda_j}, \quad r_j = \frac{\lambda}{\Lambda_j + \lambda}, \quad
1 - h = \frac{n - \mathrm{rank} + \sum_j r_j}{n}, \quad e = y - \hat y, \quad
\langle e, y \rangle = E_0 + \sum_j E_j r_j, \quad \lVert e \rVert^2 = E_0 + \sum_j E_j r_j^2$$

with `E_0`, the energy of the labels outside the features' span, and sums over the directions that the samples
span. Nothing here cancels when there are fewer samples than features and lambda is small.

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

    Args:
        gram: `G`, [d, d].
        moment: `Q`, [d, C].
        samples: Number of samples in them, `n`.
        lambdas: The values to try, all positive.
    """
    values, vectors = torch.linalg.eigh(gram)
    spanned = values > len(gram) * torch.finfo(gram.dtype).eps * values.max()
    spanned[: len(gram) - min(samples, len(gram))] = False
    values = values[spanned]
    energy = (vectors[:, spanned].T @ moment).square().sum(dim=1) / values
    free = samples - len(values)
    outside = (samples - energy.sum()).clamp(min=0) if free else energy.new_zeros(())
    found = []
    for lam in lambdas:
        rest = lam / (values + lam)
        unexplained = (free + rest.sum()) / samples
        along = (outside + (energy * rest).sum()) / unexplained
        length = samples - 2 * along + (outside + (energy * rest.square()).sum()) / unexplained**2
        found.append((samples - along) / (samples * length).clamp(min=1e-300).sqrt())
    return torch.stack(found)
