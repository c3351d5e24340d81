r"""Rules for router updates: SAME's as published, and rules that do protect old routing.

With the eigenpairs of the inputs' second moment `C` (`V_k` the leading ones, energy share `delta`):

* ``plain``: unchanged.
* ``paper``: $\Delta (V_k\, g\, V_k^T + V_\perp V_\perp^T)$ with $g_i = \lambda_i / \hat\lambda_i$,
  $\hat\lambda$ the mean over a window of the spectrum, and `C` of old **and** current inputs.
* ``strict``: $\Delta (I - V_k V_k^T)$, `C` of old inputs only.
* ``soft``: $\Delta\, \mu (C + \mu I)^{-1}$, `C` of old inputs, $\mu = c\, \mathrm{tr}(C)/d$.
* ``relevant``: the soft rule within the directions that matter to the task: $\Delta\, \mu V_k V_k^T$ for the
  leading `k` generalised eigenpairs $C_{new} v = \ell\, (C_{old} + \mu I)\, v$ (all of them give the soft
  rule). Ours: it fits the paper's words better than its formula does.
* ``null_ratio``: $\Delta P / \lVert P \rVert_F$, `P` the projector on eigenvalues of at most `a` times the
  smallest, `C` of old inputs (Adam-NSCL).

The published rule removes nothing: `V_k` holds the old and the new signal, and with `g = 1` it is the plain
update. So ``paper`` is kept under the name that the paper gives it, and only ``strict`` (and the guard) can
claim preservation. For one window the paper does not say whether it is centred; its released code trails,
so do we.

References:
    SAME, arXiv 2602.01990; GPM, 2103.09762; InfLoRA, 2404.00228; OWM, 1810.01256; Adam-NSCL, 2103.07113.
"""

import torch
from torch import Tensor

from moe_adapt.errors import UserError
from moe_adapt.optim.base import ROUTER_UPDATES, RouterUpdate
from moe_adapt.optim.moment import InputMoment
from moe_adapt.optim.spectrum import Energy, SpectralFilter, Spectrum

__all__ = [
    "NullRatioUpdate",
    "PaperUpdate",
    "PlainUpdate",
    "RelevantUpdate",
    "SoftUpdate",
    "StrictUpdate",
    "null_ratio_filter",
    "paper_filter",
    "relevant_filter",
    "soft_filter",
    "strict_filter",
    "trailing_mean",
]

#: Eigenvalues below this share of the largest are rounding: a singular moment counts them as that much.
FLOOR = 1e-6


def trailing_mean(values: Tensor, window: int) -> Tensor:
    """Return the mean of each value and the `window - 1` before it, as many as there are, [k].

    >>> trailing_mean(torch.tensor([4.0, 2.0, 0.0]), window=2)
    tensor([4., 3., 1.])
    """
    total = values.cumsum(0)
    total = total - torch.nn.functional.pad(total, (window, 0))[: len(values)]
    return total / torch.arange(1, len(values) + 1, device=values.device).clamp(max=window)


def paper_filter(spectrum: Spectrum, rank: int, window: int) -> SpectralFilter:
    """Return SAME's published filter; `window` 1 gives the identity."""
    values = spectrum.values[:rank]
    mean = trailing_mean(values, window)
    gains = torch.where(mean > 0, values / mean.clamp(min=torch.finfo(values.dtype).tiny), 1.0)
    return SpectralFilter(spectrum.vectors[:, :rank], gains)


def strict_filter(spectrum: Spectrum, rank: int) -> SpectralFilter:
    """Return the projector off the leading `rank` directions."""
    return SpectralFilter(spectrum.vectors[:, :rank], torch.zeros_like(spectrum.values[:rank]))


def soft_filter(spectrum: Spectrum, mu: float) -> SpectralFilter:
    """Return `mu (C + mu I)^-1`; a direction without old energy keeps its learning rate."""
    return SpectralFilter(spectrum.vectors, mu / (spectrum.values + mu))


def relevant_filter(old: Spectrum, new: Spectrum, mu: float, delta: float) -> SpectralFilter:
    """Return `mu V_k V_k^T` for the leading generalised eigenvectors, those with the share `delta` of energy.

    Args:
        old: Of the finished tasks.
        new: Of the task under way.
        mu: Regulariser.
        delta: Share of the generalised eigenvalues' sum that the directions hold.
    """
    root = SpectralFilter(old.vectors, (mu / (old.values + mu)).sqrt())
    whitened = Spectrum.of_rows(root(new.values.sqrt()[:, None] * new.vectors.t()), 1.0)
    kept = root(whitened.vectors[:, : whitened.rank(delta)].t())
    basis = Spectrum.of_rows(kept, 1.0)
    return SpectralFilter(basis.vectors, basis.values, scale=0.0)


def null_ratio_filter(spectrum: Spectrum, ratio: float) -> SpectralFilter:
    """Return Adam-NSCL's projector on the smallest eigenvalues, over its Frobenius norm.

    A sketch or a singular moment has directions without energy: they count as the smallest.
    """
    if len(spectrum.values) == 0:
        return SpectralFilter(spectrum.vectors, spectrum.values)
    least = max(float(spectrum.values[-1]), FLOOR * float(spectrum.values[0]))
    if len(spectrum.values) < spectrum.width:
        least = FLOOR * float(spectrum.values[0])
    blocked = spectrum.values > ratio * least
    free = spectrum.width - int(blocked.sum())
    vectors = spectrum.vectors[:, blocked]
    return SpectralFilter(vectors, torch.zeros_like(spectrum.values[blocked]), 1 / max(free, 1) ** 0.5)


@ROUTER_UPDATES.register("plain")
class PlainUpdate(RouterUpdate):
    """Leaves updates as they are."""

    reference = "no paper: updates stay as they are"


class _FilteredUpdate(RouterUpdate):
    filter: SpectralFilter | None = None

    def after_step(self, delta: Tensor, before: Tensor) -> Tensor:
        """Return the filtered update; before there are statistics, the update itself."""
        return delta if self.filter is None else self.filter(delta)


@ROUTER_UPDATES.register("paper")
class PaperUpdate(_FilteredUpdate):
    """SAME as published: rescales within the signal space of old and current inputs, and protects nothing.

    Args:
        delta: Share of the energy that the signal space holds.
        window: Length of the window of the spectrum's mean.
        energy: What the share is of; the paper's singular values are eigenvalues here, so squares.
    """

    reference = "SAME, Xie et al. 2026, arXiv 2602.01990"

    def __init__(self, delta: float = 0.95, window: int = 3, energy: Energy = "sigma_sq") -> None:
        _check_share(delta)
        if window < 1:
            raise UserError(f"the window of the spectrum's mean has at least one value, got {window}.")
        self.delta, self.window, self.energy = delta, window, energy

    def prepare(self, moment: InputMoment, task: int) -> None:
        """Start from the statistics at hand."""
        self.refresh(moment)

    def refresh(self, moment: InputMoment) -> None:
        """Follow the running statistics of old and current inputs."""
        spectrum = moment.spectrum("all")
        if spectrum is not None:
            self.filter = paper_filter(spectrum, spectrum.rank(self.delta, self.energy), self.window)


@ROUTER_UPDATES.register("strict")
class StrictUpdate(_FilteredUpdate):
    """Forbids the leading directions of old inputs.

    Args:
        delta: Share of the energy that is protected from the second task on.
        delta_max: Share approached as tasks go by.
        delta_step: Growth of the share per task, after GPM.
    """

    reference = "GPM, Saha et al. 2021, arXiv 2103.09762"

    def __init__(self, delta: float = 0.95, delta_max: float = 0.99, delta_step: float = 0.005) -> None:
        for share in (delta, delta_max):
            _check_share(share)
        self.delta, self.delta_max, self.delta_step = delta, delta_max, delta_step

    def prepare(self, moment: InputMoment, task: int) -> None:
        """Take the signal space of the finished tasks."""
        spectrum = moment.spectrum("past")
        if spectrum is not None:
            share = min(self.delta + self.delta_step * max(task - 1, 0), max(self.delta, self.delta_max))
            self.filter = strict_filter(spectrum, spectrum.rank(share))


@ROUTER_UPDATES.register("soft")
class SoftUpdate(_FilteredUpdate):
    """Slows every direction down by how much old energy it has.

    Args:
        c: Regulariser in units of the mean eigenvalue: `mu = c tr(C) / d`.
    """

    reference = "OWM, Zeng et al. 2018, arXiv 1810.01256"

    def __init__(self, c: float = 0.05) -> None:
        if c <= 0:
            raise UserError(f"the regulariser c of the soft rule must be positive, got {c}.")
        self.c = c

    def prepare(self, moment: InputMoment, task: int) -> None:
        """Take the moment of the finished tasks."""
        spectrum = moment.spectrum("past")
        if spectrum is not None and spectrum.trace > 0:
            self.filter = soft_filter(spectrum, self.c * spectrum.mean)


@ROUTER_UPDATES.register("relevant")
class RelevantUpdate(SoftUpdate):
    """Moves along what the task has and the old ones have not; until it is known, as the soft rule.

    Args:
        c: Regulariser in units of the mean eigenvalue of old inputs.
        delta: Share of the generalised eigenvalues' sum that the directions hold.
    """

    reference = "no paper: ours, from the words of SAME"

    def __init__(self, c: float = 0.05, delta: float = 0.95) -> None:
        super().__init__(c)
        _check_share(delta)
        self.delta = delta

    def refresh(self, moment: InputMoment) -> None:
        """Compare the task so far with the finished ones."""
        old, new = moment.spectrum("past"), moment.spectrum("current")
        if old is not None and new is not None and old.trace > 0:
            self.filter = relevant_filter(old, new, self.c * old.mean, self.delta)


@ROUTER_UPDATES.register("null_ratio")
class NullRatioUpdate(_FilteredUpdate):
    """Allows only directions with next to no old energy (Adam-NSCL).

    Args:
        ratio: Largest eigenvalue allowed, as a multiple of the smallest.
    """

    reference = "Adam-NSCL, Wang et al. 2021, arXiv 2103.07113"

    def __init__(self, ratio: float = 10.0) -> None:
        if ratio < 1:
            raise UserError(f"the ratio of eigenvalues is at least 1, got {ratio}.")
        self.ratio = ratio

    def prepare(self, moment: InputMoment, task: int) -> None:
        """Take the moment of the finished tasks."""
        spectrum = moment.spectrum("past")
        if spectrum is not None and spectrum.trace > 0:
            self.filter = null_ratio_filter(spectrum, self.ratio)


def _check_share(share: float) -> None:
    if not 0 < share <= 1:
        raise UserError(f"the share of energy to protect is in (0, 1], got {share}.")
