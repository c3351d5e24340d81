"""The part of an adapter's configuration that says how whole samples are routed."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from moe_adapt.errors import UserError, did_you_mean
from moe_adapt.routing.sample import RuleShape

__all__ = ["SampleConfig"]


@dataclass(frozen=True)
class SampleConfig:
    """How an adapter routes samples.

    Args:
        experts: Names of the experts, in the order of the scores' columns.
        shape: Sizes of the rule; None if experts are chosen by ids alone.
        block: After how many blocks of the base a sample's features are taken.
        k: Experts per sample; 0 weights all of them by their probabilities.
        temperature: Divides the scores.
        threshold: Novelty beyond which the base answers; None never leaves a sample to it.
        heads: Shapes of each expert's own head, by tensor, if the experts have heads.
        classes: How many classes each expert's head has.
        head: Path of the head in the base model; empty if the experts have none.
        adds: Whether the scores do not decide, but are added to the logits of every token (`SampleScore`).
    """

    experts: list[str]
    shape: RuleShape | None = None
    block: int = 0
    k: int = 1
    temperature: float = 1.0
    threshold: float | None = None
    heads: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    classes: dict[str, int] = field(default_factory=dict)
    head: str = ""
    adds: bool = False

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "SampleConfig":
        """Read what `to_dict` wrote.

        Raises:
            UserError: If the values do not fit together.
        """
        try:
            shape = values.get("shape")
            config = cls(**{**values, "shape": None if shape is None else RuleShape(**shape)})
        except TypeError as error:
            raise UserError(
                f"sample_router of the adapter is damaged ({error}); compose it again."
            ) from error
        names = config.experts
        if not names or len(set(names)) < len(names):
            raise UserError(f"the experts of a sample router have different names, got {names!r}.")
        fits = config.shape is None or (
            config.shape.experts == len(names) <= config.shape.rows and config.block > 0
        )
        if not fits or config.k < 0 or not config.temperature > 0:
            raise UserError("sample_router of the adapter is damaged; compose it again.")
        return config

    def to_dict(self) -> dict[str, Any]:
        """Return the values as JSON types; `adds` only if it is true, which older versions do not know."""
        return {name: value for name, value in asdict(self).items() if name != "adds" or value}

    def places(self, ids: Sequence[str | int | None]) -> list[int]:
        """Return the place of each sample's expert, -1 where none is given.

        Args:
            ids: Name or number of each sample's expert; None or -1 for none.

        Raises:
            UserError: If there is no such expert.
        """
        found = []
        for uid in ids:
            if uid is None or uid == -1:
                found.append(-1)
            elif isinstance(uid, str) and uid in self.experts:
                found.append(self.experts.index(uid))
            elif isinstance(uid, int) and 0 <= uid < len(self.experts):
                found.append(uid)
            else:
                hint = did_you_mean(uid, self.experts) if isinstance(uid, str) else ""
                raise UserError(
                    f"there is no expert {uid!r}.{hint} Experts: {', '.join(self.experts)}; None leaves a "
                    "sample to the router."
                )
        return found
