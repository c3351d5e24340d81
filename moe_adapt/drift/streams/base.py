"""What a drift stream is: rows in time order, a schema that names nominal columns, and where the drifts are.

Iterating gives River's pairs `(features: dict, label)`, always from the beginning; a missing value is left
out of its row, which is what River's learners take for missing. A `Concept` is an endless
source of rows under one rule; a `DriftStream` cuts a number of rows from one and knows its drifts.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from moe_adapt.errors import UserError

__all__ = ["Concept", "DriftStream", "Row"]

#: Values in the order of the schema, and the number of the class.
Row = tuple[list[Any], int]


class Concept(ABC):
    """An endless, repeatable source of rows.

    Attributes:
        features: Names of the columns.
        nominal: Those of them whose values have no order.
        n_classes: Labels are 0 to n_classes - 1.
    """

    features: tuple[str, ...]
    nominal: frozenset[str] = frozenset()
    n_classes: int = 2

    @abstractmethod
    def __iter__(self) -> Iterator[Row]:
        """Yield rows from the beginning; two iterators give the same rows and share no state."""


@dataclass(frozen=True)
class DriftStream:
    """A finite stream with a name.

    Args:
        name: Short name, used in tables.
        source: Where the rows come from, restarted by every iteration; labels may be of any kind.
        features: Names of the columns.
        nominal: Those of them whose values have no order.
        n_rows: How many rows there are.
        n_classes: How many classes there are.
        drifts: Rows at which the rule changes (centres), in order; empty if unknown or continuous.
        bayes: Accuracy of the best possible rule, in [0, 1], where it is known.
    """

    name: str
    source: Any = field(repr=False)
    features: tuple[str, ...]
    nominal: frozenset[str]
    n_rows: int
    n_classes: int
    drifts: tuple[int, ...] = ()
    bayes: float | None = None

    def __post_init__(self) -> None:
        if self.n_rows < 1:
            raise UserError(f"a stream has at least one row, but {self.name} was asked for {self.n_rows}.")

    def __iter__(self) -> Iterator[tuple[dict[str, Any], Any]]:
        for values, label in islice(iter(self.source), self.n_rows):
            pairs = zip(self.features, values, strict=True)
            yield {name: value for name, value in pairs if value is not None}, label

    def __len__(self) -> int:
        return self.n_rows
