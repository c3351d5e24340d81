r"""Curvature-scaled expert updates: slow where old inputs have energy.

The damage of an update `dD = d(B A)` of an expert's matrix on old inputs is

$$\mathbb{E}\,\lVert dD\, x \rVert^2 = \mathrm{tr}(dD\, C\, dD^T), \qquad dD = dB\, A + B\, dA + dB\, dA,$$

and its natural remedy is a right-multiplication by `(C + mu I)^-1`. The paper states it for the expert's
matrix; for the factor `A`, whose columns are the inputs, this is `dA mu (C + mu I)^-1` (scaled by `mu`, so
that directions without old energy keep their learning rate). For `B` the inputs are `z = w A x`, whose
second moment is taken as `mean(w^2) A C A^T`: exact where a gate does not depend on the token, and needing
no statistic of its own.

The paper inverts `V_k diag(lambda_k) V_k^T + mu I` of the leading directions. Here all of `C` is inverted,
unless a share of energy is given. On a toy problem the two updates differ by 15 %.

The factors of a LoRA are not unique (`B M, M^-1 A`), so what a factor's preconditioner achieves depends on
the gauge; `degradation` of the product is what is logged.

Reference:
    SAME, arXiv 2602.01990; K-FAC, 1503.05671.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from moe_adapt.errors import UserError
from moe_adapt.optim.base import UpdateTransform
from moe_adapt.optim.moment import InputMoment
from moe_adapt.optim.router import soft_filter
from moe_adapt.optim.spectrum import SpectralFilter

__all__ = [
    "DownPreconditioner",
    "ExpertDownPreconditioner",
    "UpPreconditioner",
    "degradation",
    "product_update",
]


def degradation(update: Tensor, moment: Tensor) -> Tensor:
    """Return `tr(D C D^T)`, the mean squared change of output on inputs of second moment `C`.

    Args:
        update: Updates, [..., o, d].
        moment: Second moment, [d, d].

    >>> float(degradation(torch.ones(1, 2), torch.eye(2)))
    2.0
    """
    return ((update @ moment) * update).sum((-1, -2))


def product_update(a: Tensor, b: Tensor, delta_a: Tensor, delta_b: Tensor) -> Tensor:
    """Return the change of each expert's matrix `B A`, [E, o, d].

    Args:
        a: Down-projections before, [E, r, d].
        b: Up-projections before, [o, E, r].
        delta_a: Their update, [E, r, d].
        delta_b: Their update, [o, E, r].
    """
    return torch.einsum("oer,erd->eod", delta_b, a + delta_a) + torch.einsum("oer,erd->eod", b, delta_a)


def damping(mean: float, c: float | None, mu: float | None) -> float:
    """Return `mu` itself, or `c` times the mean eigenvalue."""
    return c * mean if mu is None else mu  # type: ignore[operator]


class DownPreconditioner(UpdateTransform):
    """Scales updates of `A` [E, r, d] by `mu (C + mu I)^-1` of old inputs.

    Args:
        c: Regulariser in units of the mean eigenvalue.
        mu: Absolute regulariser instead (the paper's 0.9); its effect depends on the scale of the inputs.
        share: Share of the energy of old inputs whose leading directions are scaled, as in the paper; the
            others keep their learning rate. None scales all. Higher: more directions are slowed.
    """

    def __init__(self, c: float = 0.05, mu: float | None = None, share: float | None = None) -> None:
        if c <= 0 or (mu is not None and mu <= 0):
            raise UserError(f"the regulariser of the preconditioner must be positive, got c={c}, mu={mu}.")
        if share is not None and not 0 < share <= 1:
            raise UserError(f"the share of energy that is preconditioned is in (0, 1], got {share}.")
        self.c, self.mu, self.share = c, mu, share
        self.filter: SpectralFilter | None = None

    def prepare(self, moment: InputMoment) -> None:
        """Take the moment of the finished tasks."""
        spectrum = moment.spectrum("past")
        if spectrum is not None and spectrum.trace > 0:
            mu = damping(spectrum.mean, self.c, self.mu)
            self.filter = soft_filter(spectrum if self.share is None else spectrum.leading(self.share), mu)

    def after_step(self, delta: Tensor, before: Tensor) -> Tensor:
        """Return the scaled update; before there are old inputs, the update itself."""
        return delta if self.filter is None else self.filter(delta)


class ExpertDownPreconditioner(UpdateTransform):
    """Scales updates of `A` [E, r, d], expert by expert, by old inputs as that expert was used on them.

    The moment of expert `i` is `C_i = sum w_i x x^T / sum w_i`; an expert that old tokens never used learns
    freely. (Not in the paper, whose `C` is that of the layer.)

    Args:
        c: Regulariser in units of the mean eigenvalue of each `C_i`.
        mu: Absolute regulariser instead.
        share: Share of the energy of each `C_i` whose leading directions are scaled; None scales all.
    """

    def __init__(self, c: float = 0.05, mu: float | None = None, share: float | None = None) -> None:
        self.c, self.mu, self.share = c, mu, share
        self.experts: list[DownPreconditioner] = []

    def prepare(self, moments: Sequence[InputMoment]) -> None:
        """Take the moments of the finished tasks, one per expert."""
        self.experts = [DownPreconditioner(self.c, self.mu, self.share) for _ in moments]
        for expert, moment in zip(self.experts, moments, strict=True):
            expert.prepare(moment)

    def after_step(self, delta: Tensor, before: Tensor) -> Tensor:
        """Return the scaled update."""
        scaled = [e.after_step(*pair) for e, *pair in zip(self.experts, delta, before, strict=True)]
        return torch.stack(scaled)


class UpPreconditioner(UpdateTransform):
    """Scales updates of `B` [o, E, r] by `mu (M_e + mu I)^-1` of each expert's hidden vectors.

    Args:
        c: Regulariser in units of the mean eigenvalue of `M_e`.
    """

    def __init__(self, c: float = 0.05) -> None:
        if c <= 0:
            raise UserError(f"the regulariser of the preconditioner must be positive, got c={c}.")
        self.c = c
        self.inverse: Tensor | None = None

    def prepare(self, moment: InputMoment, a: Tensor, weight: Tensor) -> None:
        """Take the moment of the finished tasks.

        Args:
            moment: Of the layer's inputs.
            a: Down-projections, [E, r, d].
            weight: Mean squared gate of each expert on old inputs, [E].
        """
        if moment.rows_seen("past") == 0:
            return
        a = a.detach().float()
        hidden = weight[:, None, None] * (a @ moment.matrix("past") @ a.transpose(1, 2))
        rank = a.shape[1]
        mean = hidden.diagonal(dim1=1, dim2=2).mean(-1)
        mu = torch.where(mean > 0, self.c * mean, 1.0)  # an expert that old tokens never used learns freely
        eye = torch.eye(rank, device=a.device)
        self.inverse = mu[:, None, None] * torch.linalg.inv(hidden + mu[:, None, None] * eye)

    def after_step(self, delta: Tensor, before: Tensor) -> Tensor:
        """Return the scaled update; before there are old inputs, the update itself."""
        if self.inverse is None:
            return delta
        return torch.einsum("oer,ers->oes", delta, self.inverse.to(delta.dtype))
