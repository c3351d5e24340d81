r"""Nearest prototype: a few centroids per expert, compared by their cosine with the sample's features.

$$s_e(x) = \max_{c \in C_e} \cos(x, c)$$

No expert's score depends on another's. Novelty is one minus the best cosine, up to a constant.

Reference: Lee et al., "RouterRetriever", arXiv 2409.02685.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from moe_adapt.errors import UserError
from moe_adapt.routing.sample.base import SAMPLE_ROUTERS, SampleRouter, entries
from moe_adapt.routing.sample.rule import RuleShape, SampleRule

__all__ = ["PrototypeSampleRouter", "centroids"]


def centroids(examples: Tensor, count: int, seed: int = 42, rounds: int = 50) -> Tensor:
    """Return the unit centroids of examples by spherical K-means.

    Args:
        examples: Vectors, [M, d].
        count: How many centroids; at most as many as there are different examples.
        seed: Fixes the starting points.
        rounds: The most rounds.

    Returns:
        Centroids, [k, d], of length one.

    >>> centroids(torch.tensor([[1.0, 0.0], [2.0, 0.0]]), count=1)
    tensor([[1., 0.]])
    """
    unit = F.normalize(examples.float(), dim=-1)
    distinct = unit.unique(dim=0)
    order = torch.randperm(len(distinct), generator=torch.Generator().manual_seed(seed))
    means = distinct[order[: min(count, len(distinct))]]
    nearest: Tensor | None = None
    for _ in range(rounds):
        old, nearest = nearest, (unit @ means.t()).argmax(dim=1)
        if old is not None and torch.equal(old, nearest):
            break
        for index in range(len(means)):
            members = unit[nearest == index]
            if len(members):
                means[index] = F.normalize(members.mean(dim=0), dim=0)
    return means


@SAMPLE_ROUTERS.register("prototype")
class PrototypeSampleRouter(SampleRouter):
    """Cosine to the nearest of an expert's centroids.

    Args:
        count: Centroids per expert.
        temperature: What cosines are divided by before they become probabilities.

    Attributes:
        prototypes: Centroids by expert, [k, d] each.

    Raises:
        UserError: If an option is out of range.
    """

    def __init__(self, count: int = 1, temperature: float = 0.05) -> None:
        if count < 1 or temperature <= 0:
            raise UserError(
                f"prototypes need at least one centroid and a positive temperature, got {count} and "
                f"{temperature}."
            )
        self.count, self.temperature = count, temperature
        self.prototypes: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    @property
    def uids(self) -> list[str]:
        """Names of the experts, sorted."""
        return sorted(self.prototypes)

    @property
    def counts(self) -> dict[str, int]:
        """How many examples each expert's centroids come from."""
        return {uid: self._counts[uid] for uid in self.uids}

    def observe(self, features: Tensor, uid: str, labels: Sequence[str | None] | None = None) -> None:
        """Set an expert's centroids (see `SampleRouter.observe`).

        Raises:
            UserError: If the expert has some already: centroids do not add up.
        """
        if uid in self.prototypes:
            raise UserError(f"{uid!r} has its prototypes already; remove it first, and give all examples.")
        if features.ndim != 2 or not len(features):
            raise UserError(f"the expert {uid!r} needs examples of what it is for; give at least one text.")
        known = next(iter(self.prototypes.values()), None)
        if known is not None and known.shape[1] != features.shape[1]:
            raise UserError(
                f"the examples of {uid!r} have {features.shape[1]} features, those before had "
                f"{known.shape[1]}; take the same layer of the same model."
            )
        self.prototypes[uid] = centroids(features.detach().cpu(), self.count)
        self._counts[uid] = len(features)

    def remove(self, uid: str) -> None:
        """Forget an expert (see `SampleRouter.remove`)."""
        self.check_known(uid)
        del self.prototypes[uid], self._counts[uid]

    def rule(self) -> SampleRule:
        """Return the centroids, over the temperature (see `SampleRouter.rule`)."""
        self.check_some()
        parts = [self.prototypes[uid] for uid in self.uids]
        rows = torch.cat(parts)
        rule = SampleRule(RuleShape(rows.shape[1], len(rows), len(parts), normalize=True))
        rule.weight.copy_(rows / self.temperature)
        owners = [expert for expert, part in enumerate(parts) for _ in range(len(part))]
        rule.owner.copy_(torch.tensor(owners))
        return rule

    def state(self) -> dict[str, Tensor]:
        """Return the centroids and counts of every expert."""
        found = {}
        for uid in self.uids:
            found[f"{uid}/prototypes"] = self.prototypes[uid]
            found[f"{uid}/count"] = torch.tensor(self._counts[uid])
        return found

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over centroids (see `SampleRouter.load`)."""
        found = entries(state)
        self.prototypes = {uid: parts["prototypes"] for uid, parts in found.items()}
        self._counts = {uid: int(parts["count"]) for uid, parts in found.items()}
