r"""LoRA-Mixer's preserve loss: experts stay near what they were when the second stage began.

$$L = \sum_{i \in C} \|\theta_i - \theta_i^0\|^2$$

averaged over sites. As printed `theta` are the factors; two equal experts in different gauges
(`(B M, M^-1 A)`) are then far apart, so ``space="delta"`` takes the changes of weight instead,
`||s B A - s B^0 A^0||_F^2`, through Gram matrices of size `r`. The start is taken at the first step from a
share of the steps on (`since`), is saved with the adapter and taken anew after an edit of the pool.

Reference: LoRA-Mixer, arXiv 2507.00029, equation 11 (its coefficient is not known).
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from moe_adapt.errors import UserError
from moe_adapt.experts import inner_product
from moe_adapt.routing.base import AUX_LOSSES, ExpertLoss, SiteExperts

__all__ = ["PreserveLoss"]


@AUX_LOSSES.register("preserve")
class PreserveLoss(ExpertLoss):
    """Squared distance of experts to their start.

    Args:
        weight: Coefficient in the total loss. Higher: experts stay nearer to their start.
        space: Distance between factors, or between changes of weight.
        experts: Names of the experts to hold; None holds all.
        since: Share of the optimizer steps after which the start is taken.

    Raises:
        UserError: If an option is out of range.
    """

    reference = "LoRA-Mixer, arXiv 2507.00029"

    needs_start = True

    def __init__(
        self,
        weight: float = 1e-3,
        space: Literal["factors", "delta"] = "factors",
        experts: list[str] | None = None,
        since: float = 0.5,
    ) -> None:
        super().__init__(weight)
        if space not in ("factors", "delta"):
            raise UserError(f"the space of the preserve loss is 'factors' or 'delta', got {space!r}.")
        if not 0 <= since <= 1:
            raise UserError(f"since is a share of the steps in [0, 1], got {since}.")
        self.space, self.experts, self.since = space, experts, since

    def forward(  # type: ignore[override]
        self, sites: Sequence[SiteExperts], progress: float
    ) -> Tensor:
        """Return the mean over sites; 0 before the start is taken.

        Raises:
            UserError: If none of `experts` exists.
        """
        parts = []
        for site in sites:
            held = [i for i, uid in enumerate(site.uids) if self.experts is None or uid in self.experts]
            if not held or progress < self.since:
                continue
            assert site.start is not None
            for start, now in zip(site.start, (site.a, site.b), strict=True):
                if bool(start.isnan().any()):
                    start.copy_(now.detach())
            parts.append(self._distance(site, held))
        if progress < self.since:
            return torch.zeros((), device=sites[0].a.device)
        if not parts:
            raise UserError(f"the preserve loss holds {self.experts}, but no layer has such an expert.")
        return torch.stack(parts).mean()

    def _distance(self, site: SiteExperts, held: list[int]) -> Tensor:
        assert site.start is not None
        a0, b0 = site.start
        if self.space == "factors":
            return (site.a[held] - a0[held]).square().sum() + (site.b[:, held] - b0[:, held]).square().sum()
        a, b = site.a[held], site.b[:, held].transpose(0, 1)
        a0, b0 = a0[held], b0[:, held].transpose(0, 1)
        now, then, both = (inner_product(*pair) for pair in ((a, b, a, b), (a0, b0, a0, b0), (a, b, a0, b0)))
        return site.scale**2 * (now - 2 * both + then).sum()
