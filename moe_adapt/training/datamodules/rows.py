"""The rows of one split, and the choice of some of them: held out, or a smaller training set."""

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
from torch.utils.data import Dataset

from moe_adapt.data.disk import DiskTable
from moe_adapt.errors import UserError

__all__ = ["DiskRows", "DiskTexts", "RawRow", "Rows", "hold_out", "stratified_rows"]


class Rows(Dataset):
    """A map-style data set over a sequence.

    Args:
        items: What the rows are, [rows].
        strata: Class number of each row, [rows]; all zero where there are no classes.
        lengths: Length of each row, [rows], in any unit; None where rows have no length.
    """

    def __init__(
        self, items: Sequence[Any], strata: np.ndarray, lengths: Sequence[int] | None = None
    ) -> None:
        self.items = items
        self.strata = strata
        self.lengths = lengths

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, row: int) -> Any:
        return self.items[row]

    def subset(self, rows: np.ndarray) -> Self:
        """Return the given rows, [chosen] row numbers, as a data set of their own."""
        chosen = copy.copy(self)
        chosen.items = [self.items[row] for row in rows]
        chosen.strata = self.strata[rows]
        chosen.lengths = None if self.lengths is None else [self.lengths[row] for row in rows]
        return chosen


class RawRow(NamedTuple):
    """A row that is made into tokens with its batch.

    Attributes:
        row: Its columns.
        number: Its number, for messages.
        split: The split that it is in.
    """

    row: dict[str, Any]
    number: int
    split: str


class DiskRows(Rows):
    """Rows on disk, of which only row numbers are in memory.

    Args:
        table: The table.
        split: The split.
        convert: What a row goes through first; None for nothing.
        measure: Whether `lengths` are needed.
    """

    def __init__(
        self,
        table: DiskTable,
        split: str,
        convert: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
        measure: bool = False,
    ) -> None:
        lengths: Any = table.lengths if measure else None
        super().__init__(table, np.zeros(len(table), dtype=np.int8), lengths)  # type: ignore[arg-type]
        self.split = split
        self.convert = convert

    def __getitem__(self, row: int) -> RawRow:
        found = self.items[row]
        return RawRow(found if self.convert is None else self.convert(found), row, self.split)

    def of_split(self, split: str) -> Self:
        """Return the same rows as those of another split."""
        chosen = copy.copy(self)
        chosen.split = split
        return chosen

    def subset(self, rows: np.ndarray) -> Self:
        """Return the given rows, [chosen] row numbers, as a data set of their own; nothing is read."""
        chosen = copy.copy(self)
        chosen.items = self.items.subset(rows)  # type: ignore[attr-defined]
        chosen.strata = self.strata[rows]
        chosen.lengths = None if self.lengths is None else self.lengths[rows]  # type: ignore[call-overload]
        return chosen


class DiskTexts(DiskRows):
    """Texts with labels on disk; in memory are numbers alone.

    Args:
        table: The table.
        columns: Columns of the texts of a row.
        labels: Class number of each row, [rows].
        domains: Domain of each row, [rows]; None where rows have none.
        lengths: Characters of each row, [rows].
    """

    def __init__(
        self,
        table: DiskTable,
        columns: Sequence[str],
        labels: np.ndarray,
        domains: np.ndarray | None,
        lengths: np.ndarray,
    ) -> None:
        super().__init__(table, "")
        self.columns = columns
        self.strata, self.domains = labels, domains
        self.lengths = lengths  # type: ignore[assignment]

    def __getitem__(self, row: int) -> Any:
        found = self.items[row]
        domain = None if self.domains is None else int(self.domains[row])
        return tuple(found[column] for column in self.columns), int(self.strata[row]), domain

    def subset(self, rows: np.ndarray) -> Self:
        """Return the given rows, [chosen] row numbers, as a data set of their own; nothing is read."""
        chosen = super().subset(rows)
        chosen.domains = None if self.domains is None else self.domains[rows]
        return chosen


def hold_out(rows: Rows, fraction: float, seed: int) -> tuple[Rows, Rows]:
    """Split off a share of the rows, class by class; return the rest and the share.

    Args:
        rows: All rows.
        fraction: The share in (0, 1); at least one row is taken, and every class keeps one.
        seed: Fixes the choice.

    Raises:
        UserError: If no row would be left.
    """
    spare = len(rows) - len(np.unique(rows.strata))
    count = min(max(1, round(fraction * len(rows))), spare)
    if count < 1:
        raise UserError(
            f"{len(rows)} training rows are too few to hold out one for validation, for no class "
            "would have a "
            "row left: give validation rows, or set validation_fraction to 0."
        )
    held_out = stratified_rows(rows.strata, count, seed, keep=1)
    return rows.subset(np.setdiff1d(np.arange(len(rows)), held_out)), rows.subset(held_out)


def stratified_rows(labels: np.ndarray, count: int, seed: int, keep: int = 0) -> np.ndarray:
    """Choose `count` rows so that every class keeps its share, up to rounding.

    The classes' shares are rounded by largest remainder, ties by chance.

    Args:
        labels: Class number of every row, [rows].
        count: How many rows to choose; all if there are fewer.
        seed: Fixes the choice.
        keep: How many rows of every class must not be chosen.

    Returns:
        Row numbers in ascending order, [min(count, rows)].

    >>> stratified_rows(np.array([0, 0, 0, 0, 1, 1]), 3, seed=0).tolist()
    [2, 3, 5]
    """
    if count >= len(labels):
        return np.arange(len(labels))
    rng = np.random.default_rng(seed)
    sizes = np.bincount(labels)
    most = np.maximum(sizes - keep, 0)
    shares = sizes * (count / len(labels))
    quotas = np.minimum(np.floor(shares).astype(int), most)
    by_remainder = np.lexsort((rng.random(len(sizes)), quotas - shares))
    while (missing := count - quotas.sum()) > 0 and (quotas < most).any():
        open_classes = by_remainder[(quotas < most)[by_remainder]]
        quotas[open_classes[:missing]] += 1
    chosen = [rng.permutation(np.flatnonzero(labels == c))[:quota] for c, quota in enumerate(quotas)]
    return np.sort(np.concatenate(chosen))
