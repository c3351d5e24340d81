r"""Linear discriminant analysis over experts: means and one covariance, shrunk, from sums alone.

An expert has one mean, or one per class of its examples where labels tell classes apart (`classes`). With all
`C` means $m_c$ and the pooled covariance of `n` examples around their own means, $\hat\Sigma = S / (n - C)$,

$$\Sigma = (1 - \rho) \hat\Sigma + \rho\, \tfrac{\mathrm{tr}\,\hat\Sigma}{d} I, \qquad
  s_e(x) = \max_{c \in e}\; m_c^\top \Sigma^{-1} x - \tfrac12 m_c^\top \Sigma^{-1} m_c,$$

with equal priors: how many examples somebody gave says nothing about how often an expert is asked for. The
shrinkage `rho` is the oracle-approximating one, which needs the covariance alone. Features are the mean
hidden states of a middle layer, which tell tasks apart better than the final embedding. Novelty is the
squared Mahalanobis distance to the nearest mean, over what all but a share of that expert's own texts keep
within. That limit comes from the moments as well: the distance of a new text to the mean of its class is
taken for a scaled chi-square with mean $\mathrm{tr}(P \Sigma_e)$ and variance
$2\,\mathrm{tr}((P \Sigma_e)^2)$, raised by what an example's own part in `P` hides (`choice`). Real features
have heavier tails than that: each expert keeps how much farther its own examples reach, under its own
covariance, than a chi-square would say.

Without any scatter (one example per expert) the covariance is the identity: the nearest mean decides.

Reference: Chen, Wiesel, Eldar and Hero, "Shrinkage Algorithms for MMSE Covariance Estimation", IEEE
Transactions on Signal Processing 58 (2010), arXiv 0907.4698.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from moe_adapt.errors import UserError
from moe_adapt.routing.sample.base import SAMPLE_ROUTERS, SampleRouter, entries
from moe_adapt.routing.sample.classes import WHOLE, class_keys
from moe_adapt.routing.sample.moments import Moments
from moe_adapt.routing.sample.rule import RuleShape, SampleRule

__all__ = ["LdaRouter", "Pooled", "oas"]


class Pooled(NamedTuple):
    """What experts share.

    Attributes:
        means: Means of the experts' classes, float64 [C, d].
        owner: Expert of each mean, int64 [C].
        precision: Inverse of the shrunk covariance, float64 [d, d].
        shrinkage: `rho`.
        freedom: `n - C`.
    """

    means: Tensor
    owner: Tensor
    precision: Tensor
    shrinkage: float
    freedom: int


def oas(covariance: Tensor, freedom: int) -> float:
    """Return the oracle-approximating shrinkage of a covariance [d, d] estimated from `freedom` vectors.

    >>> oas(torch.eye(3, dtype=torch.float64), 10)
    1.0
    """
    d = len(covariance)
    square, trace = float((covariance * covariance).sum()), float(covariance.trace())
    above = (1 - 2 / d) * square + trace**2
    below = (freedom + 1 - 2 / d) * (square - trace**2 / d)
    return 1.0 if below <= above else above / below


def _shrunk_inverse(covariance: Tensor, freedom: int, shrinkage: float | None) -> tuple[Tensor, float]:
    """Return the inverse of a shrunk covariance, and by how much it is shrunk."""
    rho = oas(covariance, freedom) if shrinkage is None else shrinkage
    identity = torch.eye(len(covariance), dtype=covariance.dtype)
    level = max(float(covariance.trace()) / len(covariance), 1e-12)
    precision = torch.linalg.inv((1 - rho) * covariance + max(rho, 1e-6) * level * identity)
    return (precision + precision.t()) / 2, rho


@SAMPLE_ROUTERS.register("lda")
class LdaRouter(SampleRouter):
    """Discriminants between experts.

    Args:
        shrinkage: `rho`, in [0, 1]; None takes the oracle-approximating one.
        abstain: Share of an expert's own texts that may count as foreign.

    Attributes:
        moments: Of each expert's examples, by class.
        tails: How much farther each expert's examples reach than their moments say, at least 1.

    Raises:
        UserError: If an option is out of range.
    """

    def __init__(self, shrinkage: float | None = None, abstain: float = 0.01) -> None:
        if shrinkage is not None and not 0 <= shrinkage <= 1:
            raise UserError(f"shrinkage is a share in [0, 1], got {shrinkage}.")
        if not 0 < abstain < 1:
            raise UserError(f"abstain is a share between 0 and 1, got {abstain}.")
        self.shrinkage, self.abstain = shrinkage, abstain
        self.moments: dict[str, Moments] = {}
        self.tails: dict[str, float] = {}

    @property
    def uids(self) -> list[str]:
        """Names of the experts, sorted."""
        return sorted(self.moments)

    @property
    def counts(self) -> dict[str, int]:
        """How many examples each expert's moments come from."""
        return {uid: self.moments[uid].count for uid in self.uids}

    @property
    def classes(self) -> dict[str, int]:
        """How many classes each expert's examples have; 1 where they are not told apart."""
        return {uid: len(self.moments[uid].classes) for uid in self.uids}

    def observe(self, features: Tensor, uid: str, labels: Sequence[str | None] | None = None) -> None:
        """Add examples to an expert's moments (see `SampleRouter.observe`)."""
        keys = class_keys(labels, features)
        new = Moments.of(features, keys)
        width, known = new.means.shape[1], next(iter(self.moments.values()), None)
        if known is not None and known.means.shape[1] != width:
            raise UserError(
                f"the examples of {uid!r} have {width} features, those before had {known.means.shape[1]}; "
                "take the same layer of the same model."
            )
        self.moments[uid] = self.moments[uid] + new if uid in self.moments else new
        self.tails[uid] = max(
            self.tails.get(uid, 1.0), self._tail(features.detach().cpu().double(), keys, new)
        )

    def remove(self, uid: str) -> None:
        """Forget an expert (see `SampleRouter.remove`)."""
        self.check_known(uid)
        del self.moments[uid], self.tails[uid]

    def pooled(self) -> Pooled:
        """Return the means and what experts share, combined in the order of their names."""
        self.check_some()
        parts = [self.moments[uid] for uid in self.uids]
        means = torch.cat([part.means for part in parts])
        owner = torch.tensor([expert for expert, part in enumerate(parts) for _ in part.classes])
        freedom = sum(part.freedom for part in parts)
        identity = torch.eye(means.shape[1], dtype=torch.float64)
        scatter = torch.zeros_like(identity)
        for part in parts:
            scatter += part.scatter()
        if freedom < 1 or float(scatter.trace()) <= 0:
            return Pooled(means, owner, identity, 1.0, freedom)
        precision, rho = _shrunk_inverse(scatter / freedom, freedom, self.shrinkage)
        return Pooled(means, owner, precision, rho, freedom)

    def _tail(self, features: Tensor, keys: Tensor, moments: Moments) -> float:
        """Return the quantile of examples' distances, each left out, over what their moments say."""
        freedom = moments.freedom
        if freedom < 3:
            return 1.0
        precision, rho = _shrunk_inverse(moments.scatter() / freedom, freedom, self.shrinkage)
        place = torch.searchsorted(moments.classes, keys)
        counts = moments.counts[place].double()
        judged = counts > 1
        v = (features - moments.means[place])[judged]
        scale, ratio = (1 - rho) / freedom, (counts / (counts - 1))[judged]
        plain = (v @ precision * v).sum(dim=1)
        left_out = ratio**2 * plain / (1 - scale * ratio * plain).clamp(min=0.05)
        reached = float(left_out.quantile(1 - self.abstain))
        return max(1.0, reached / self._limit(moments, precision, scale))

    def _limit(self, moments: Moments, precision: Tensor, scale: float) -> float:
        """Return the distance that a share `abstain` of new texts exceeds, if it is a scaled chi-square."""
        z = 2**0.5 * float(torch.erfinv(torch.tensor(1 - 2 * self.abstain, dtype=torch.float64)))
        spread = moments.factor @ precision @ moments.factor.t() / moments.freedom
        mean, half_variance = float(spread.trace()), float((spread * spread).sum())
        freedom = mean**2 / max(half_variance, 1e-12)
        quantile = (1 - 2 / (9 * freedom) + z * (2 / (9 * freedom)) ** 0.5) ** 3 * mean
        ratio = moments.count / moments.freedom
        return max(ratio**2 * quantile / max(1 - scale * ratio * quantile, 0.05), 1e-12)

    def can_abstain(self) -> bool:
        """Return True if some expert has two examples of a class: without any spread nothing is foreign."""
        return any(part.freedom > 0 for part in self.moments.values())

    def limits(self, pooled: Pooled) -> Tensor:
        """Return the distance that all but `abstain` of each expert's own texts keep within, float64 [E].

        Experts without two examples of a class get the largest limit of the others.
        """
        scale, found = (1 - pooled.shrinkage) / max(pooled.freedom, 1), []
        for uid in self.uids:
            moments = self.moments[uid]
            known = moments.freedom > 0
            found.append(self.tails[uid] * self._limit(moments, pooled.precision, scale) if known else 0.0)
        limits = torch.tensor(found, dtype=torch.float64)
        return torch.where(limits > 0, limits, limits.max().clamp(min=1e-12))

    def rule(self) -> SampleRule:
        """Return the discriminants, around the mean of the means (see `SampleRouter.rule`)."""
        pooled = self.pooled()
        center = pooled.means.mean(dim=0)
        means = pooled.means - center
        weight = means @ pooled.precision
        rule = SampleRule(RuleShape(means.shape[1], len(means), len(self.moments), precision=True))
        values = {
            "weight": weight,
            "bias": -(weight * means).sum(dim=1) / 2,
            "owner": pooled.owner,
            "center": center,
            "limit": self.limits(pooled)[pooled.owner],
            "precision": pooled.precision,
        }
        for name, value in values.items():
            getattr(rule, name).copy_(value)
        return rule

    def state(self) -> dict[str, Tensor]:
        """Return counts, means, factor and tail of every expert; its classes if it has some."""
        found = {}
        for uid in self.uids:
            moments, plain = self.moments[uid], self.classes[uid] == 1
            if not plain:
                found[f"{uid}/classes"] = moments.classes
            found[f"{uid}/count"] = moments.counts[0] if plain else moments.counts
            found[f"{uid}/mean"] = moments.means[0] if plain else moments.means
            found[f"{uid}/factor"] = moments.factor
            found[f"{uid}/tail"] = torch.tensor(self.tails[uid], dtype=torch.float64)
        return found

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over moments (see `SampleRouter.load`).

        Raises:
            UserError: If the parts of an expert do not fit together.
        """
        found = entries(state)
        whole = torch.tensor([WHOLE])
        moments = {
            uid: Moments(
                parts.get("classes", whole),
                parts["count"].reshape(-1),
                parts["mean"].reshape(-1, parts["mean"].shape[-1]),
                parts["factor"],
            )
            for uid, parts in found.items()
        }
        broken = next((uid for uid, own in moments.items() if not own.fits()), None)
        if broken is not None:
            raise UserError(f"the statistics of the expert {broken!r} do not fit together; compose it anew.")
        self.moments = moments
        self.tails = {uid: float(parts["tail"]) for uid, parts in found.items()}
