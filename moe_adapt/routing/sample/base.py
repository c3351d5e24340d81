"""Sample routers: statistics of what experts are for, which become a rule that a model carries.

A router keeps one entry per expert and nothing that mixes them, and combines the entries in the order of the
names. So the rule depends on the set of experts alone: adding and removing one is exact to the last bit, and
the order in which they came does not matter.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from torch import Tensor

from moe_adapt.errors import UserError, did_you_mean
from moe_adapt.registry import Registry
from moe_adapt.routing.sample.routes import SampleRoutes, decide
from moe_adapt.routing.sample.rule import SampleRule

__all__ = ["SAMPLE_ROUTERS", "SampleRouter"]


class SampleRouter(ABC):
    """Learns from examples which expert a sample is for."""

    @property
    @abstractmethod
    def uids(self) -> list[str]:
        """Names of the experts, sorted: the order of the scores' columns."""

    @property
    @abstractmethod
    def counts(self) -> dict[str, int]:
        """How many examples each expert's statistics come from."""

    @abstractmethod
    def observe(self, features: Tensor, uid: str, labels: Sequence[str | None] | None = None) -> None:
        """Take in examples of what an expert is for; a new name is a new expert.

        Args:
            features: Features of the examples, [M, d].
            uid: The expert's name.
            labels: Class of each example, for routers that tell an expert's classes apart.

        Raises:
            UserError: If there is no example, or the width is another one.
        """

    @abstractmethod
    def remove(self, uid: str) -> None:
        """Forget an expert.

        Raises:
            UserError: If there is none of that name.
        """

    @abstractmethod
    def rule(self) -> SampleRule:
        """Return the rule for the experts that are known.

        Raises:
            UserError: If there is none.
        """

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Return the statistics as tensors, from which `load` goes on."""

    @abstractmethod
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` returned."""

    def decide(
        self, features: Tensor, k: int = 1, temperature: float = 1.0, threshold: float | None = None
    ) -> SampleRoutes:
        """Return the decisions for features [B, d]; the arguments are those of `routes.decide`."""
        scores, novelty = self.rule()(features)
        return decide(scores, novelty, k, temperature, threshold, uids=self.uids)

    def scores(self, features: Tensor) -> Tensor:
        """Return the score of every expert, [B, E]."""
        return self.rule()(features)[0]

    def can_abstain(self) -> bool:
        """Return whether the rule's novelty has a limit, so that 1 is a threshold."""
        return False

    def check_known(self, uid: str) -> None:
        """Raise `UserError` if there is no expert of that name."""
        if uid not in self.uids:
            raise UserError(
                f"there is no expert {uid!r}.{did_you_mean(uid, self.uids)} Experts: {', '.join(self.uids)}."
            )

    def check_some(self) -> None:
        """Raise `UserError` if there is no expert at all."""
        if not self.uids:
            raise UserError("the router knows no expert yet; give it examples of one.")


#: Sample routers by short name.
SAMPLE_ROUTERS: Registry[SampleRouter] = Registry("sample router")


def entries(state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Return tensors named ``<uid>/<part>`` by name and part.

    >>> entries({"a/b/mean": Tensor([0.0])})
    {'a/b': {'mean': tensor([0.])}}
    """
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        uid, _, part = name.rpartition("/")
        found.setdefault(uid, {})[part] = tensor
    return found
