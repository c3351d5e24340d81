r"""Choose among published adapters before a model runs: which of them suits a query?

`PrototypeRouter` keeps a few centroids per adapter, of the embeddings of texts that the adapter is good at,
under a frozen encoder. An adapter's score for a query is its nearest centroid's cosine:

$$z_a(q) = \max_{c \in C_a} \cos(q, c)$$

Nothing is trained. Every adapter is scored on its own, so that adding or removing one changes no other's
score, to the last bit.

`StatisticsRouter` takes any router over samples (`moe_adapt.routing.sample`), with probabilities as scores.
With ``lda`` over the features of a middle block of a base model it also says which queries are foreign.

The paper finds out which adapter is best for a training query by running all of them; here the examples of an
adapter are given, best those that it was trained on.

Reference: Lee et al., "RouterRetriever: Routing over a Mixture of Expert Embedding Models", arXiv 2409.02685.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from moe_adapt.errors import UserError, did_you_mean
from moe_adapt.routing.sample import SAMPLE_ROUTERS, SampleRouter
from moe_adapt.routing.sample.prototype import centroids

__all__ = ["AdapterRouter", "Plan", "PrototypeRouter", "StatisticsRouter", "centroids"]


@dataclass(frozen=True)
class Plan:
    """Which adapters suit which query.

    Attributes:
        uids: Names of the adapters, in the order of the columns.
        scores: Score of every adapter for every query, [Q, A].
        foreign: Which queries are far from what all adapters are for, bool [Q].
    """

    uids: list[str]
    scores: Tensor
    foreign: Tensor | None = None

    def best(self, count: int = 1) -> list[list[tuple[str, float]]]:
        """Return the best adapters of each query with their scores, best first.

        Args:
            count: How many; fewer if there are not so many.
        """
        values, columns = self.scores.topk(min(count, len(self.uids)), dim=1)
        pairs = zip(values.tolist(), columns.tolist(), strict=True)
        return [[(self.uids[i], value) for value, i in zip(*row, strict=True)] for row in pairs]

    def suiting(
        self, count: int = 1, margin: float = 0.0, least: float | None = None
    ) -> list[list[tuple[str, float]]]:
        """Return the adapters that suit each query with their scores, best first; none for a foreign one.

        Args:
            count: The most adapters.
            margin: Beside the best, take those whose score is at most this much less.
            least: Least score; below it the base answers.
        """
        found = []
        for row, best in enumerate(self.best(len(self.uids) if margin else count)):
            top = best[0][1]
            near = [pair for pair in best if not margin or top - pair[1] <= margin][: max(count, 1)]
            strange = self.foreign is not None and bool(self.foreign[row])
            found.append([] if strange or (least is not None and top < least) else near)
        return found


class AdapterRouter(ABC):
    """Routes queries over a pool of adapters."""

    @abstractmethod
    def route(self, embeddings: Tensor) -> Plan:
        """Return the plan for the embeddings of queries, [Q, d].

        Raises:
            UserError: If there is no adapter, or the width is another one.
        """

    @abstractmethod
    def add(self, uid: str, examples: Tensor, labels: Sequence[str | None] | None = None) -> None:
        """Add an adapter.

        Args:
            uid: Its name.
            examples: Embeddings of what it is good at, [M, d].
            labels: Class of each, for a router that tells an adapter's classes apart (``lda``).

        Raises:
            UserError: If the name is taken, or there are no examples.
        """

    @abstractmethod
    def remove(self, uid: str) -> None:
        """Remove an adapter.

        Raises:
            UserError: If there is none of that name.
        """


class PrototypeRouter(AdapterRouter):
    """Nearest centroid of the adapters' examples.

    Args:
        count: Centroids per adapter.
        seed: Seed of their computation.

    Attributes:
        prototypes: Centroids by adapter, [k, d] each.
    """

    def __init__(self, count: int = 1, seed: int = 42) -> None:
        if count < 1:
            raise UserError(f"an adapter needs at least one centroid, got {count}.")
        self.count = count
        self.seed = seed
        self.prototypes: dict[str, Tensor] = {}

    def add(self, uid: str, examples: Tensor, labels: Sequence[str | None] | None = None) -> None:
        """Add an adapter by the centroids of its examples (see `AdapterRouter.add`)."""
        if uid in self.prototypes:
            raise UserError(
                f"the pool has an adapter {uid!r} already; remove it first or choose another name."
            )
        if examples.ndim != 2 or not len(examples):
            raise UserError(f"the adapter {uid!r} needs examples of what it is good at; give at least one.")
        self._check_width(examples)
        self.prototypes[uid] = centroids(examples, self.count, self.seed)

    def remove(self, uid: str) -> None:
        """Remove an adapter (see `AdapterRouter.remove`)."""
        if uid not in self.prototypes:
            raise UserError(f"the pool has no adapter {uid!r}.{did_you_mean(uid, self.prototypes)}")
        del self.prototypes[uid]

    def route(self, embeddings: Tensor) -> Plan:
        """Return the cosines to the nearest centroids (see `AdapterRouter.route`)."""
        if not self.prototypes:
            raise UserError("the pool is empty; add an adapter first.")
        self._check_width(embeddings)
        queries = F.normalize(embeddings.float(), dim=-1)
        columns = [(queries @ means.t()).amax(dim=1) for means in self.prototypes.values()]
        return Plan(list(self.prototypes), torch.stack(columns, dim=1))

    def _check_width(self, embeddings: Tensor) -> None:
        known = next(iter(self.prototypes.values()), None)
        if known is not None and known.shape[1] != embeddings.shape[-1]:
            raise UserError(
                f"the pool's embeddings have {known.shape[1]} dimensions, these have {embeddings.shape[-1]}; "
                "use the encoder that the pool was made with."
            )


class StatisticsRouter(AdapterRouter):
    """A router over samples, as one over adapters.

    Args:
        name: Its short name.

    Attributes:
        statistics: The router over samples.
    """

    def __init__(self, name: str = "lda") -> None:
        self.name = name
        self.statistics: SampleRouter = SAMPLE_ROUTERS.build({"name": name})

    def add(self, uid: str, examples: Tensor, labels: Sequence[str | None] | None = None) -> None:
        """Add an adapter by the statistics of its examples (see `AdapterRouter.add`)."""
        if uid in self.statistics.uids:
            raise UserError(
                f"the pool has an adapter {uid!r} already; remove it first or choose another name."
            )
        self.statistics.observe(examples, uid, labels)

    def remove(self, uid: str) -> None:
        """Remove an adapter (see `AdapterRouter.remove`)."""
        self.statistics.remove(uid)

    def route(self, embeddings: Tensor) -> Plan:
        """Return the adapters' probabilities, and what is foreign (see `AdapterRouter.route`)."""
        if not self.statistics.uids:
            raise UserError("the pool is empty; add an adapter first.")
        rule = self.statistics.rule()
        if rule.shape.features != embeddings.shape[-1]:
            raise UserError(
                f"the pool's features have {rule.shape.features} dimensions, these have "
                f"{embeddings.shape[-1]}; use the model that the pool was made with."
            )
        scores, novelty = rule(embeddings)
        foreign = novelty > 1 if self.statistics.can_abstain() else None
        return Plan(self.statistics.uids, scores.softmax(dim=1), foreign)
