r"""The start of a head that goes on training: discriminants between classes, at the loss of held-out rows.

Discriminants of few samples in many dimensions separate the samples they were fitted to by hundreds of nats.
A head that starts like that has no loss on its own training rows, and neither it nor an adapter below it
learns. So their scores are divided by the temperature at which the training rows have the loss that held-out
rows have at their best temperature,

$$\ell = \min_T \; \frac1M \sum_k \sum_{i \in \mathrm{fold}\, k}
-\log \mathrm{softmax}(s^{(-k)}(z_i) / T)_{y_i},
\qquad T : \; \frac1N \sum_i -\log \mathrm{softmax}(s(z_i) / T)_{y_i} = \ell,$$

where `s^{(-k)}` are the discriminants without fold `k`. At least a tenth of the loss of guessing is left. The
largest score, and so the answer, stays the same.

Temperature scaling: Guo et al., arXiv 1706.04599. Discriminants: `heads.slda`.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from moe_adapt.learners.heads.slda import SldaHead

__all__ = ["discriminant_start"]

FOLDS = 3
#: The loss left to training is at least this share of what guessing has.
LEAST = 0.1
#: Temperatures that are tried, in steps of a quarter octave.
GRID = 2.0 ** (torch.arange(-16, 65, dtype=torch.float64) / 4)


def discriminant_start(features: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Return weight [C, d] and bias [C] of discriminants that have the loss of held-out rows.

    Without a class of two samples there are no held-out rows; the loss is then half of what guessing has.

    Args:
        features: What the head reads, [N, d].
        labels: Their classes, int64 [N], each in ``range(num_classes)``.
        num_classes: Number of classes, `C`.
    """
    weight, bias = _discriminants(features, labels, num_classes)
    scores, truth = _held_out(features, labels, num_classes)
    guessing = math.log(max(num_classes, 2))
    loss = max(_losses(scores, truth).min().item(), LEAST * guessing) if len(truth) else guessing / 2
    gaps = (_losses(features.double() @ weight.T + bias, labels) - loss).abs()
    temperature = GRID[int(gaps.argmin())].item()
    return weight / temperature, bias / temperature


def _losses(scores: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy of scores [N, C] at every temperature of the grid."""
    return torch.stack([F.cross_entropy(scores / value, labels) for value in GRID.tolist()])


def _discriminants(features: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    head = SldaHead(features.shape[1], "oas").to(features.device)
    head.grow(num_classes)
    head.update(features, labels)
    return head.solution


def _held_out(features: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Return scores [M, C] of samples by discriminants without their fold, and their classes [M]."""
    place = torch.zeros_like(labels)
    for label in labels.unique():
        rows = labels == label
        place[rows] = torch.arange(int(rows.sum()), device=labels.device)
    several = (labels.bincount(minlength=num_classes) > 1)[labels]
    scores, truth = [], []
    for fold in range(FOLDS):
        out = (place % FOLDS == fold) & several
        if out.any():
            weight, bias = _discriminants(features[~out], labels[~out], num_classes)
            scores.append(features[out].double() @ weight.T + bias)
            truth.append(labels[out])
    if not truth:
        return features.new_zeros(0, num_classes, dtype=torch.float64), labels[:0]
    return torch.cat(scores), torch.cat(truth)
