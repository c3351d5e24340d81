"""Rows in memory with every cell as it was written: no type is inferred, so none is rewritten.

A column may hold texts, numbers and nested values side by side. What is read from it converts where it needs
a number or a text, and names the row that does not convert. It is used like a `datasets.Dataset`
(``table[3]``, ``table["text"]``, ``column_names``, ``to_list``), which would make one type of every column.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, overload

__all__ = ["Table"]


class Table:
    """A table of named columns of equal length.

    Args:
        columns: The values of each column, [rows] each.

    >>> table = Table.from_rows([{"text": "2020-05-17", "label": "007"}, {"text": "NA"}])
    >>> table["text"], table[1]
    (['2020-05-17', 'NA'], {'text': 'NA', 'label': None})
    """

    #: As a data set without declared features.
    features: Mapping[str, Any] = {}

    def __init__(self, columns: Mapping[str, Sequence[Any]]) -> None:
        self._columns = dict(columns)

    @classmethod
    def from_rows(cls, rows: Iterable[Mapping[str, Any]]) -> "Table":
        """Return the table of some rows; a row that lacks a column has None there."""
        rows = list(rows)
        names = dict.fromkeys(name for row in rows for name in row)
        return cls({name: [row.get(name) for row in rows] for name in names})

    @property
    def column_names(self) -> list[str]:
        """Names of the columns, in their order."""
        return list(self._columns)

    def __len__(self) -> int:
        return len(next(iter(self._columns.values()), ()))

    @overload
    def __getitem__(self, key: str) -> Sequence[Any]: ...

    @overload
    def __getitem__(self, key: int) -> dict[str, Any]: ...

    def __getitem__(self, key: str | int) -> Any:
        if isinstance(key, str):
            return self._columns[key]
        return {name: values[key] for name, values in self._columns.items()}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[row] for row in range(len(self)))

    def to_list(self) -> list[dict[str, Any]]:
        """Return the rows as dicts."""
        return list(self)
