r"""Nearest class mean with cosine similarity (SimpleCIL).

$$\mathrm{score}_c(f) = \cos\Big(f,\ \frac{1}{n_c}\sum_{i: y_i = c} f_i\Big)$$

The published head averages features as they are; `normalize_first` averages directions instead.

Reference: Zhou et al., arXiv 2303.07338.
"""

from typing import ClassVar

import torch
from torch import Tensor

from moe_adapt.learners.heads.base import LinearHead, direction

__all__ = ["NearestMeanHead"]


class NearestMeanHead(LinearHead):
    """Scores a class by the cosine between the feature and the mean of the class.

    Args:
        width: Number of features, `d`.
        normalize_first: Whether to scale every feature to length one before averaging.

    >>> head = NearestMeanHead(2)
    >>> head.update(torch.tensor([[3.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1]))
    >>> head(torch.tensor([[1.0, 0.0]]))
    tensor([[1., 0.]], dtype=torch.float64)
    """

    class_axes: ClassVar[dict[str, int]] = {"counts": 0, "sums": 0}
    sums: Tensor

    def __init__(self, width: int, normalize_first: bool = False) -> None:
        super().__init__(width)
        self.normalize_first = normalize_first
        self.add_statistic("sums", 0, width)

    def embed(self, features: Tensor) -> Tensor:
        """Return the direction of the features."""
        return direction(features)

    def accumulate(self, features: Tensor, labels: Tensor) -> None:
        """Add the batch to the sums."""
        used = direction(features) if self.normalize_first else features
        self.sums = self.sums + self.class_sums(used, labels)[0]

    def absorb(self, other: "NearestMeanHead") -> None:
        """Add the other head's sums."""
        self.sums[: other.num_classes] += other.sums

    def solve(self) -> tuple[Tensor, Tensor]:
        """Return the directions of the class means, and no bias."""
        return direction(self.sums), torch.zeros_like(self.sums[:, 0])
