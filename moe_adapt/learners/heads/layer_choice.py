r"""Which layers of an encoder a closed-form head reads, chosen on the first task.

Candidates are all runs of `n` neighbouring layers. Each is judged on the samples of the first task by the
accuracy of linear discriminant analysis under leave-one-out, in closed form
(`moe_adapt.routing.sample.choice`), with the oracle-approximating shrinkage. Of those within one standard
error of the best the highest layers are taken: with a few samples many candidates are as good as equal. The
choice stays as it is afterwards: sums of every layer would have to be kept to choose again.
"""

import math

import torch
from torch import Tensor

from moe_adapt.errors import UserError
from moe_adapt.routing.sample.choice import leave_one_out

__all__ = ["choose_layers", "take_layers"]

#: Samples per class that choose; more cost time and change little.
ENOUGH = 20


def take_layers(features: Tensor, num_layers: int, first: int, count: int) -> Tensor:
    """Return the features of neighbouring layers, [B, count * d], out of those of all, [B, num_layers * d].

    >>> take_layers(torch.tensor([[1, 2, 3, 4, 5, 6]]), num_layers=3, first=1, count=2)
    tensor([[3, 4, 5, 6]])
    """
    width = features.shape[1] // num_layers
    return features[:, first * width : (first + count) * width]


@torch.no_grad()
def choose_layers(features: Tensor, labels: Tensor, num_layers: int, count: int) -> tuple[int, list[float]]:
    """Return the first of the chosen layers, and the accuracy of every candidate.

    Args:
        features: Features of all layers side by side, [N, num_layers * d].
        labels: Class indices, [N].
        num_layers: How many layers there are.
        count: How many neighbouring ones to take.

    Raises:
        UserError: If there are fewer layers than that, or no class has two samples.
    """
    if not 1 <= count <= num_layers:
        raise UserError(
            f"layers={count} neighbours are to be chosen out of {num_layers}; give the encoder more layers."
        )
    rows = {str(label): (labels == label).nonzero()[:ENOUGH, 0] for label in labels.unique().tolist()}
    if num_layers > count and all(len(found) < 2 for found in rows.values()):
        raise UserError("layers are chosen on the first task, where some class needs two samples or more.")
    accuracies = []
    for first in range(num_layers - count + 1):
        taken = take_layers(features, num_layers, first, count)
        accuracies.append(leave_one_out({uid: taken[found] for uid, found in rows.items()}).accuracy)
    judged = sum(len(found) for found in rows.values() if len(found) > 1)
    top = max(accuracies)
    rate = (top * judged + 1) / (judged + 2)  # Laplace's rule: an accuracy of 1 has an error, too
    bound = top - math.sqrt(rate * (1 - rate) / max(judged, 1))
    return max(first for first, accuracy in enumerate(accuracies) if accuracy >= bound), accuracies
