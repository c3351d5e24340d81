"""The domain (task, customer) of each row, as numbers: for routers by label and for maps of experts."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from datasets import Dataset
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor

from moe_adapt.data.labels import column_of
from moe_adapt.data.table import Table
from moe_adapt.data.tables import TableSource, describe, require_columns
from moe_adapt.errors import UserError, did_you_mean

__all__ = ["DomainColumn", "Unknown"]

#: What is done with a value that no training row has.
Unknown = Literal["error", "base"]


class DomainColumn:
    """A column of domains; the first table that is read, that of the training rows, names them.

    Args:
        column: Name of the column; None if rows have no domain.
        groups: Domain of each value of the column; None makes every value a domain.
        unknown: ``base`` numbers values that no training row has -1, and says so; ``error`` refuses them.

    Attributes:
        names: Names of the domains, in the order of their numbers.
    """

    def __init__(
        self, column: str | None, groups: Mapping[str, str] | None = None, unknown: Unknown = "error"
    ) -> None:
        self.column, self.groups, self.unknown = column, groups, unknown
        self.names: list[str] = []

    def read(self, table: Table | Dataset, source: TableSource) -> list[int | None]:
        """Return the number of each row's domain; None for every row if there is no column.

        Raises:
            UserError: If the column is missing, or a domain is none of those named.
        """
        if self.column is None:
            return [None] * len(table)
        require_columns(table, [self.column], source)
        values = column_of(table[self.column], describe(source), what=self.column).texts
        if not self.names:
            self._name(values, source)
        numbers = self.numbers()
        strange = [row for row, value in enumerate(values) if value not in numbers]
        if strange and self.unknown == "error":
            value = values[strange[0]]
            raise UserError(
                f"row {strange[0]} of {describe(source)} has the domain {value!r}, which no training row has."
                f"{did_you_mean(value, list(numbers))}"
            )
        if strange:
            few = sorted({values[row] for row in strange})[:5]
            rank_zero_info(
                f"{len(strange)} rows of {describe(source)} have a {self.column} that no training row has "
                f"({', '.join(few)}); what all share answers them."
            )
        return [numbers.get(value, -1) for value in values]

    def _name(self, values: Sequence[str], source: TableSource) -> None:
        """Take the domains of the training rows."""
        if self.groups is None:
            self.names = sorted(set(values))
            return
        lost = sorted(set(values) - self.groups.keys())
        if lost:
            raise UserError(
                f"{describe(source)} has the {self.column} {lost[0]!r}, which is in none of the groups: add "
                "it to domain_groups, or find the groups again."
            )
        self.names = sorted({self.groups[value] for value in set(values)})

    def numbers(self) -> dict[str, int]:
        """Return the number of the domain of each value that has one."""
        places = {name: number for number, name in enumerate(self.names)}
        if self.groups is None:
            return places
        return {value: places[group] for value, group in self.groups.items() if group in places}

    def answering(self) -> dict[str, Any]:
        """Return the column and the number of each value, as JSON types; nothing if there is no column."""
        return {} if self.column is None else {"domain_column": self.column, "domains": self.numbers()}

    def batch(self, numbers: Sequence[int | None]) -> dict[str, Tensor]:
        """Return ``domain_ids`` [B] for the rows of a batch, or nothing if rows have no domain."""
        return {} if self.column is None else {"domain_ids": torch.tensor(numbers)}
