r"""ERC loss: each expert answers its own router row most, and each row its own expert.

With router rows `R` and proxies `\tilde R_i = R_i \odot u`, `u` uniform in
`[1 - \epsilon_i, 1 + \epsilon_i]` (a token that would be routed there), and `M_{ij} = \|A_j \tilde R_i\|`,
the activation of expert `j`:

$$L = \frac{1}{E^2} \sum_{i \ne j}
\mathrm{relu}(M_{ij} - \alpha M_{ii}) + \mathrm{relu}(M_{ij} - \alpha M_{jj}),
\qquad \epsilon_i = \frac{\min_{j \ne i} \|R_i - R_j\|}{2 \|R_i\|}$$

It costs `E^2 r d`, whatever the number of tokens. The raw form is not scale-invariant and is zero for
`A = 0`; ``normalize`` (default, ours) divides by `|A_j|_F |\tilde R_i|`. The proxy is drawn in the loss only.

Reference: Lv et al., "Coupling Experts and Routers in Mixture-of-Experts via an Auxiliary Loss", arXiv
2512.23447 (read in notes and a port; official code not verified).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from moe_adapt.errors import UserError
from moe_adapt.routing.base import AUX_LOSSES, ExpertLoss, SiteExperts

__all__ = ["RouterCouplingLoss", "coupling_loss", "proxies"]


def proxies(rows: Tensor) -> Tensor:
    """Return the router rows with noise that keeps each nearest to its own row, [E, d]."""
    apart = torch.cdist(rows, rows) + torch.diag(rows.new_full((len(rows),), torch.inf))
    width = apart.amin(dim=-1) / (2 * rows.norm(dim=-1).clamp(min=torch.finfo(rows.dtype).tiny))
    width = width.detach().clamp(max=1).unsqueeze(-1)
    return rows * (1 + width * (2 * torch.rand_like(rows) - 1))


def coupling_loss(a: Tensor, proxy: Tensor, alpha: float, normalize: bool) -> Tensor:
    """Return the loss of one site for down-projections [E, r, d] and proxies [E, d]."""
    activation = torch.einsum("jrd,id->ijr", a, proxy).norm(dim=-1)
    if normalize:
        size = a.flatten(1).norm(dim=-1) * proxy.norm(dim=-1).unsqueeze(-1)
        activation = activation / size.clamp(min=torch.finfo(size.dtype).tiny)
    own = activation.diagonal()
    terms = (activation - alpha * own.unsqueeze(1)).relu() + (activation - alpha * own.unsqueeze(0)).relu()
    off = ~torch.eye(len(a), dtype=torch.bool, device=a.device)
    return (terms * off).mean()


@AUX_LOSSES.register("router_coupling")
class RouterCouplingLoss(ExpertLoss):
    """Couples router rows and experts (ERC).

    Args:
        weight: Coefficient in the total loss. Higher: router rows and experts agree more.
        alpha: How much of an expert's own activation the others may reach. Higher: a looser constraint.
        normalize: Whether activations are taken relative to the sizes of expert and row.

    Raises:
        UserError: If `alpha` is not positive.
    """

    reference = "ERC, Lv et al. 2025, arXiv 2512.23447"

    def __init__(self, weight: float = 0.1, alpha: float = 1.0, normalize: bool = True) -> None:
        super().__init__(weight)
        if alpha <= 0:
            raise UserError(f"alpha of the coupling loss is positive, got {alpha}.")
        self.alpha, self.normalize = alpha, normalize

    def forward(  # type: ignore[override]
        self, sites: Sequence[SiteExperts], progress: float
    ) -> Tensor:
        """Return the mean over sites with more than one expert.

        Raises:
            UserError: If a site's scorer has no row per expert, or its experts share `A` or are all frozen.
        """
        parts = []
        for site in sites:
            if site.b.shape[1] == 1:
                continue
            if site.rows is None or len(site.a) == 1 or not site.a.requires_grad:
                raise UserError(
                    f"the coupling loss needs a linear scorer and trainable experts with an A of their own, "
                    f"which {site.site!r} lacks."
                )
            proxy = proxies(site.rows.to(site.a.dtype))
            parts.append(coupling_loss(site.a, proxy, self.alpha, self.normalize))
        return torch.stack(parts).mean() if parts else torch.zeros(())
