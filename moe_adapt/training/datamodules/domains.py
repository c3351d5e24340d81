"""The domain (task) of each row: numbers for routers that learn by label, and for maps of experts."""

from collections.abc import Sequence

import torch
from datasets import Dataset
from torch import Tensor

from moe_adapt.data.labels import column_of
from moe_adapt.data.table import Table
from moe_adapt.data.tables import TableSource, describe, require_columns
from moe_adapt.errors import UserError, did_you_mean

__all__ = ["DomainColumn"]


class DomainColumn:
    """A column of domains; the first table that is read, that of the training rows, names them.

    Args:
        column: Name of the column; None if rows have no domain.

    Attributes:
        names: Names of the domains, in the order of their numbers.
    """

    def __init__(self, column: str | None) -> None:
        self.column = column
        self.names: list[str] = []

    def read(self, table: Table | Dataset, source: TableSource) -> list[int | None]:
        """Return the number of each row's domain; None for every row if there is no column.

        Raises:
            UserError: If the column is missing, or a domain is none of those named.
        """
        if self.column is None:
            return [None] * len(table)
        require_columns(table, [self.column], source)
        values = column_of(table[self.column], f"{describe(source)} (column {self.column!r})").texts
        if not self.names:
            self.names = sorted(set(values))
        numbers = {name: number for number, name in enumerate(self.names)}
        for row, value in enumerate(values):
            if value not in numbers:
                raise UserError(
                    f"row {row} of {describe(source)} has the domain {value!r}, which no training row has."
                    f"{did_you_mean(value, self.names)}"
                )
        return [numbers[value] for value in values]

    def batch(self, numbers: Sequence[int | None]) -> dict[str, Tensor]:
        """Return ``domain_ids`` [B] for the rows of a batch, or nothing if rows have no domain."""
        return {} if self.column is None else {"domain_ids": torch.tensor(numbers)}
