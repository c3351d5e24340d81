"""A stream from a file of one's own: CSV, TSV, JSON lines, Parquet or ARFF, rows in time order.

Columns of text and truth values are nominal, and those that are named so; columns whose text is dates
become seconds. Missing values stay out of their rows. The label column is told, or it is the last one.
Everything is checked before the first row is learned.

Cells of CSV and TSV files are texts, and a column of them is numbers if every cell is one; ``NA``, ``null``
and the like are missing there, and words in a column of words. ``007`` is a code, so its column is nominal.
What seems to be meant otherwise, such as a column of numbers with one word in it, is warned of.
"""

import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from moe_adapt.drift.streams.arff import read_arff
from moe_adapt.drift.streams.base import DriftStream
from moe_adapt.errors import UserError, did_you_mean
from moe_adapt.reading import foreign
from moe_adapt.textfiles import json_lines, reader_suffix, separated_rows

__all__ = ["SUFFIXES", "file_stream"]

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet", ".arff")
#: Rows from which on, and different values per row above which, values are taken for identifiers.
_ENOUGH_ROWS, _IDENTIFIERS = 40, 0.5
#: Different labels above which a column of numbers is taken for something to predict by regression.
_MANY_LABELS = 1000
_NUMBER = re.compile(
    r"\s*[+-]?(?!0\d)(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*|\s*[+-]?inf(inity)?\s*", re.IGNORECASE
)
_WHOLE = re.compile(r"0|-?[1-9][0-9]*")
#: What stands for no number in a column of numbers, in lower case.
_MISSING = {"na", "n/a", "#n/a", "nan", "-nan", "null", "none", "<na>", "?"}

Columns = dict[str, list[Any]]


def file_stream(
    path: str | Path,
    label: str | None = None,
    n_rows: int | None = None,
    nominal: Sequence[str] = (),
    name: str | None = None,
) -> DriftStream:
    """Return the rows of a file as a stream.

    Args:
        path: The file; text may be packed (``.gz``, ``.zip``, ``.xz``, ``.bz2``, ``.zst``).
        label: The column to predict; the last one if not given.
        n_rows: Only the first rows.
        nominal: Columns that are nominal although their values are numbers.
        name: What tables call it; the file's name if not given.

    Raises:
        UserError: If the file cannot be read, has no such column, or its labels cannot be learned.
    """
    path = Path(path)
    if n_rows is not None and n_rows < 1:
        raise UserError(f"n_rows must be at least 1, got {n_rows}.")
    table, written = _read(path)
    columns = list(table)
    rows = len(next(iter(table.values()), ()))
    if len(columns) < 2 or not rows:
        raise UserError(
            f"{path} has {len(columns)} columns and {rows} rows; a stream needs features and a label."
        )
    target = columns[-1] if label is None else str(label)
    for wanted in (target, *nominal):
        if wanted not in columns:
            known = ", ".join(columns[:20])
            raise UserError(
                f"{path} has no column {wanted!r}.{did_you_mean(wanted, columns)} Columns: {known}."
            )
    labels = _labels(table[target][:n_rows], target, path, written)
    features = [column for column in columns if column != target]
    words: list[str] = []
    data: list[list[Any]] = []
    for column in features:
        cells = table[column][:n_rows]
        numbers: list[Any] | None = (
            None if column in nominal else _numbers(cells, column, path, written) or _dates(cells)
        )
        if numbers is None:
            words.append(column)
            if column not in nominal and (doubt := _doubt(cells, column)):
                warnings.warn(f"{path.name}: {doubt}", stacklevel=2)
            numbers = [None if cell is None or cell == "" else str(cell) for cell in cells]
        data.append(numbers)
    return DriftStream(
        name or path.name.partition(".")[0],
        _Rows(data, labels),
        tuple(features),
        frozenset(words),
        len(labels),
        len(set(labels)),
    )


class _Rows:
    def __init__(self, columns: list[list[Any]], labels: list[Any]) -> None:
        self.columns, self.labels = columns, labels

    def __iter__(self) -> Iterator[tuple[list[Any], Any]]:
        for *values, label in zip(*self.columns, self.labels, strict=True):
            yield values, label


def _read(path: Path) -> tuple[Columns, bool]:
    """Return the cells of every column, None where missing, and whether numbers are texts in it."""
    if not path.is_file():
        raise UserError(f"there is no file {path}.")
    kind = reader_suffix(path)
    if kind not in SUFFIXES:
        raise UserError(f"{path}: a stream is read from {', '.join(SUFFIXES)}; rename or convert it.")
    if kind == ".parquet":
        return _read_parquet(path), False
    if kind == ".arff":
        return read_arff(path), False
    if kind == ".jsonl":
        rows = [row for _, row in json_lines(path)]
        names = dict.fromkeys(name for row in rows for name in row)
        return {name: [_known(row.get(name)) for row in rows] for name in names}, False
    header, *lines = list(separated_rows(path)) or [[]]
    return {name: [line[place] for line in lines] for place, name in enumerate(header)}, True


def _read_parquet(path: Path) -> Columns:
    import pandas as pd

    with foreign(path, "a parquet file"):
        table = pd.read_parquet(path, dtype_backend="pyarrow")
        names = list(map(str, table.columns))
        if len(set(names)) < len(names):
            raise ValueError("two columns share a name")
        found = (table.iloc[:, place].tolist() for place in range(len(names)))
        return {
            name: [None if value is pd.NA else _known(value) for value in column]
            for name, column in zip(names, found, strict=True)
        }


def _known(value: Any) -> Any:
    return None if isinstance(value, float) and value != value else value


def _labels(cells: list[Any], name: str, path: Path, written: bool) -> list[Any]:
    gone = [row for row, cell in enumerate(cells, start=1) if cell is None or cell == ""]
    if gone:
        raise UserError(
            f"{path}: the label {name!r} is missing in {len(gone)} rows, first in row {gone[0]}; remove them."
        )
    labels = _one_kind(cells, name, path, written)
    kinds = len(set(labels))
    if kinds < 2:
        raise UserError(
            f"{path}: the label {name!r} is {labels[0]!r} in every row; there is nothing to learn."
        )
    if kinds > _MANY_LABELS or (len(labels) >= _ENOUGH_ROWS and kinds > _IDENTIFIERS * len(labels)):
        raise UserError(
            f"{path}: the label {name!r} has {kinds:,} different values in {len(labels):,} rows; is it an "
            f"identifier, or a number to predict? At most {_MANY_LABELS:,} classes are compared, and each "
            "has rows enough to be learned."
        )
    return labels


def _doubt(cells: list[Any], name: str) -> str:
    """Return why a column of names may be meant otherwise; empty if nothing speaks for it.

    >>> print(_doubt(["0.5", "1.5", "$2"], "price").partition("; ")[0])
    the column 'price' is read as names: 2 of 3 cells are numbers, but row 3 is '$2'
    """
    known = [(row, cell) for row, cell in enumerate(cells, start=1) if cell is not None and cell != ""]
    other = [(row, cell) for row, cell in known if not _is_number(cell)]
    codes = all(isinstance(cell, str) and cell.isdigit() for _, cell in other)  # such as 007
    if not codes and len(known) > 2 * len(other):
        row, cell = other[0]
        return (
            f"the column {name!r} is read as names: {len(known) - len(other)} of {len(known)} cells are "
            f"numbers, but row {row} is {str(cell)[:40]!r}; correct it, or say nominal."
        )
    kinds = len({str(cell) for _, cell in known})
    if len(known) >= _ENOUGH_ROWS and kinds > _IDENTIFIERS * len(known):
        return (
            f"the column {name!r} is read as names and has {kinds:,} different ones in {len(known):,} rows, "
            f"such as {str(known[0][1])[:40]!r}: names that do not come back teach nothing; leave "
            "identifiers out, and write numbers as such."
        )
    return ""


def _is_number(cell: Any) -> bool:
    if isinstance(cell, str):
        return _NUMBER.fullmatch(cell) is not None or cell.strip().lower() in _MISSING
    return not isinstance(cell, bool) and hasattr(cell, "__float__")


def _one_kind(cells: list[Any], name: str, path: Path, written: bool) -> list[Any]:
    """Return labels as texts, truth values or numbers; whole numbers are of one class in any notation."""
    kinds: dict[str, int] = {}
    for row, cell in enumerate(cells, start=1):
        known = isinstance(cell, str | bool | int | float)
        kind = {str: "text", bool: "truth value"}.get(type(cell), "number")
        if not known:
            raise UserError(
                f"{path}: the label {name!r} is {str(cell)[:60]!r} in row {row}; write a text or a number."
            )
        if not (kind == "text" and _WHOLE.fullmatch(cell)):
            kinds.setdefault(kind, row)
    if len(kinds) > 1:
        shown = " and ".join(f"a {kind} in row {row}" for kind, row in kinds.items())
        raise UserError(f"{path}: the label {name!r} is {shown}; write all of them as texts.")
    texts = all(isinstance(cell, str) for cell in cells)
    if not texts or (written and not kinds):
        return [_whole(cell) for cell in cells]
    if written and all(_NUMBER.fullmatch(cell) for cell in cells):
        return [_whole(float(cell)) for cell in cells]
    return cells


def _whole(label: Any) -> Any:
    """Return a label that is a whole number as one.

    >>> [_whole(label) for label in ("7", 2.0, 0.5, True)]
    [7, 2, 0.5, True]
    """
    if isinstance(label, str):
        return int(label)
    return int(label) if isinstance(label, float) and label.is_integer() else label


def _numbers(cells: list[Any], name: str, path: Path, written: bool) -> list[float | None] | None:
    """Return a column of numbers, None where missing; None if it holds anything else.

    Raises:
        UserError: If a number is infinite.
    """
    found: list[float | None] = []
    for cell in cells:
        if cell is None or cell == "":
            found.append(None)
        elif isinstance(cell, str):
            if written and cell.strip().lower() in _MISSING:
                found.append(None)
            elif written and _NUMBER.fullmatch(cell):
                found.append(float(cell))
            else:
                return None
        elif isinstance(cell, bool) or not hasattr(cell, "__float__"):
            return None
        else:
            found.append(_as_float(cell))
    if all(number is None for number in found):
        return None
    for row, number in enumerate(found, start=1):
        if number in (float("inf"), float("-inf")):
            raise UserError(
                f"{path}: the column {name!r} is infinite in row {row}; clip it, or leave the value out."
            )
    return found


def _as_float(number: Any) -> float:
    try:
        return float(number)
    except OverflowError:
        return float("inf")


def _dates(cells: list[Any]) -> list[float | None] | None:
    """Return a column of dates as seconds, None if it holds anything else."""
    import numpy as np
    import pandas as pd

    known = [cell for cell in cells if cell is not None and cell != ""]
    like = re.compile(r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}")
    if not known or not all(like.match(str(cell)) for cell in known):
        return None
    column = pd.to_datetime(pd.Series(cells), errors="coerce", utc=True, format="mixed")
    if int(column.notna().sum()) < len(known):
        return None
    seconds = column.to_numpy(dtype="datetime64[ns]").astype(np.int64) / 1e9
    gone = column.isna().tolist()
    return [None if no else second for second, no in zip(seconds.tolist(), gone, strict=True)]
