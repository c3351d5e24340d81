r"""RanPAC's head: ridge regression on a fixed random projection followed by a ReLU.

$$h = \mathrm{relu}(P^\top f), \quad P \in \mathbb{R}^{d \times M},\ P_{ij} \sim \mathcal{N}(0, 1)$$

The projection is drawn from a seed and rebuilt rather than saved. Lambda, `G` and `Q` are those of
`moe_adapt.learners.heads.ridge`. Cost: `G` takes 8 M^2 bytes, a solve M^3 / 3 multiply-adds; hence
`proj_dim=2000` by default where the paper has 10,000.

Reference: McDonnell et al., arXiv 2307.02251.
"""

import torch
from torch import Tensor

from moe_adapt.errors import UserError
from moe_adapt.learners.heads.ridge import LambdaRule, RidgeHead

__all__ = ["RanPacHead"]


class RanPacHead(RidgeHead):
    """Ridge regression on random features.

    Args:
        width: Number of features, `d`.
        proj_dim: Number of random features, `M`.
        lam: The regulariser, or the rule that chooses it: ``gcv``, or ``grid`` as in the paper.
        relu: Whether the projection is followed by a ReLU. Without one the head is a ridge regression with
            another regulariser.
        seed: Seed of the projection and of the split on which ``grid`` chooses.
    """

    projection: Tensor

    def __init__(
        self,
        width: int,
        proj_dim: int = 2000,
        lam: float | LambdaRule = "gcv",
        relu: bool = True,
        seed: int = 0,
    ) -> None:
        if proj_dim < 1:
            raise UserError(f"proj_dim is the number of random features, at least 1, got {proj_dim}.")
        self.proj_dim = proj_dim
        super().__init__(width, lam=lam, seed=seed)
        self.relu = relu
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(width, proj_dim, generator=generator)
        self.register_buffer("projection", drawn, persistent=False)

    @property
    def inner_width(self) -> int:
        """Number of random features, `M`."""
        return self.proj_dim

    def embed(self, features: Tensor) -> Tensor:
        """Return the random features, [B, M]."""
        projected = features @ self.projection.to(features.dtype)
        return projected.relu() if self.relu else projected

    def absorb(self, other: RidgeHead) -> None:
        """Add the other head's statistics.

        Raises:
            UserError: If the two heads project differently.
        """
        if not isinstance(other, RanPacHead) or not torch.equal(self.projection, other.projection):
            raise UserError("heads with different random projections cannot be merged; give them one seed.")
        super().absorb(other)
