r"""The rule that a model carries: from a sample's features to scores of its experts.

$$s_e(x) = \max_{c:\, o(c) = e}\; w_c \cdot \phi(x) + b_c, \qquad \phi(x) = x - \mu \ \text{or}\ x / |x|$$

One form for all sample routers: rows `w` and offsets `b` of discriminants (LDA, trained), or centroids
(prototypes, with the features' length taken out). Beside the scores there is a *novelty*, how far a sample is
from all that the experts know. Where there is a precision matrix `P` it is the least squared Mahalanobis
distance to a mean, `phi^T P phi - 2 max_e s_e` for discriminants, over that row's limit; else the negative of
the best score.
Everything is fp32 under any autocast.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["RuleShape", "SampleRule"]


@dataclass(frozen=True)
class RuleShape:
    """What it takes to build a `SampleRule` before its tensors are loaded.

    Attributes:
        features: Width of the features, `d`.
        rows: Rows of the rule, `C`.
        experts: Experts, `E`.
        precision: Whether it has a precision matrix.
        normalize: Whether features count by their direction only.
    """

    features: int
    rows: int
    experts: int
    precision: bool = False
    normalize: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return the values as JSON types."""
        return asdict(self)


class SampleRule(nn.Module):
    """Scores of the experts for samples.

    Args:
        shape: Its sizes.

    Attributes:
        weight: Rows, [C, d].
        bias: Offsets, [C].
        owner: Expert of each row, int [C].
        center: What is subtracted from features, [d].
        limit: What distances to each row's mean are divided by, [C].
        precision: Inverse of the shared covariance, [d, d]; empty if there is none.
    """

    weight: Tensor
    bias: Tensor
    owner: Tensor
    center: Tensor
    limit: Tensor
    precision: Tensor

    def __init__(self, shape: RuleShape) -> None:
        super().__init__()
        self.shape = shape
        d, rows, whole = shape.features, shape.rows, shape.precision
        self.register_buffer("weight", torch.zeros(rows, d))
        self.register_buffer("bias", torch.zeros(rows))
        self.register_buffer("owner", torch.arange(rows) % max(shape.experts, 1))
        self.register_buffer("center", torch.zeros(d))
        self.register_buffer("limit", torch.ones(rows))
        self.register_buffer("precision", torch.zeros(d if whole else 0, d))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores [B, E] and novelty [B] of features [B, d]."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            x = F.normalize(x, dim=-1) if self.shape.normalize else x - self.center
            rows = F.linear(x, self.weight, self.bias)
            scores = rows.new_full((len(x), self.shape.experts), -torch.inf)
            scores = scores.scatter_reduce(1, self.owner.expand(len(x), -1), rows, "amax")
            best, row = rows.max(dim=1)
            if not self.shape.precision:
                return scores, -best
            distance = (x @ self.precision * x).sum(dim=-1) - 2 * best
            return scores, distance / self.limit[row]
