"""A stream from a file of one's own: CSV, TSV, JSON lines, Parquet or ARFF, rows in time order.

Columns of text and truth values are nominal, and those that are named so; columns whose text is dates
become seconds. Missing values stay out of their rows. The label column is told, or it is the last one.
Everything is checked before the first row is learned.
"""

import csv
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_adapt.drift.streams.base import DriftStream
from moe_adapt.drift.streams.real import open_text
from moe_adapt.errors import UserError, did_you_mean

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["SUFFIXES", "file_stream"]

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet", ".arff")
#: Different labels above which a column of numbers is taken for something to predict by regression.
_MANY_LABELS = 1000


def file_stream(
    path: str | Path,
    label: str | None = None,
    n_rows: int | None = None,
    nominal: Sequence[str] = (),
    name: str | None = None,
) -> DriftStream:
    """Return the rows of a file as a stream.

    Args:
        path: The file; CSV, TSV and JSON lines may be packed (``.gz``, ``.zip``).
        label: The column to predict; the last one if not given.
        n_rows: Only the first rows.
        nominal: Columns that are nominal although their values are numbers.
        name: What tables call it; the file's name if not given.

    Raises:
        UserError: If the file cannot be read, has no such column, or its labels cannot be learned.
    """
    path = Path(path)
    table = _read(path)
    if table.shape[1] < 2 or not len(table):
        raise UserError(
            f"{path} has {table.shape[1]} columns and {len(table)} rows; a stream needs features and a label."
        )
    columns = [str(column) for column in table.columns]
    table.columns = columns
    twice = next((column for column in columns if columns.count(column) > 1), None)
    if twice is not None:
        raise UserError(f"{path} has two columns {twice!r}; give one another name.")
    target = columns[-1] if label is None else str(label)
    for wanted in (target, *nominal):
        if wanted not in columns:
            known = ", ".join(columns[:20])
            raise UserError(
                f"{path} has no column {wanted!r}.{did_you_mean(wanted, columns)} Columns: {known}."
            )
    table = table[: n_rows or len(table)]
    labels = _labels(table[target], path)
    features = [column for column in columns if column != target]
    data, words = _columns(table, features, set(nominal))
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


def _read(path: Path) -> "pd.DataFrame":
    if not path.is_file():
        raise UserError(f"there is no file {path}.")
    suffixes = [suffix.lower() for suffix in path.suffixes]
    kind = next((suffix for suffix in reversed(suffixes) if suffix in SUFFIXES), None)
    if kind is None:
        raise UserError(f"{path}: a stream is read from {', '.join(SUFFIXES)}; rename or convert it.")
    import pandas as pd

    try:
        if kind == ".parquet":
            return pd.read_parquet(path)
        if kind == ".jsonl":
            return pd.DataFrame(_objects(path))
        if kind == ".arff":
            return _read_arff(path)
        return pd.read_csv(path, sep="\t" if kind == ".tsv" else ",", low_memory=False, keep_default_na=True)
    except UserError:
        raise
    except Exception as problem:  # whatever a damaged file makes the readers trip over
        reason = (str(problem).strip().splitlines() or [type(problem).__name__])[0].rstrip(".")
        raise UserError(f"{path} cannot be read as {kind[1:]}: {reason[:200]}.") from problem


def _objects(path: Path) -> list[dict[str, Any]]:
    found = []
    with open_text(path) as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise UserError(f"{path}, line {number}: a row is an object, not {line.strip()[:40]!r}.")
                found.append(row)
    return found


def _read_arff(path: Path) -> "pd.DataFrame":
    import pandas as pd

    names: list[str] = []
    words: list[bool] = []
    with open_text(path) as lines:
        for line in lines:
            word = line.strip()
            if word.lower().startswith("@attribute"):
                found = re.match(r"@attribute\s+('[^']*'|\"[^\"]*\"|\S+)\s+(.*)", word, flags=re.IGNORECASE)
                if found is None:
                    raise UserError(f"{path}: the line {word[:80]!r} does not declare a column.")
                names.append(found[1].strip("'\""))
                words.append(found[2].lower().split()[0] not in ("numeric", "real", "integer"))
            elif word.lower().startswith("@data"):
                break
        else:
            raise UserError(f"{path} has no line '@data'.")
        rows = [
            [None if value.strip() == "?" else value.strip().strip("'\"") for value in row]
            for row in csv.reader(line for line in lines if line.strip() and not line.startswith("%"))
        ]
    if any(len(row) != len(names) for row in rows):
        raise UserError(f"{path} declares {len(names)} columns, but a row has another number of values.")
    table = pd.DataFrame(rows, columns=names)
    for name, is_word in zip(names, words, strict=True):
        if not is_word:
            table[name] = pd.to_numeric(table[name])
    return table


def _labels(column: "pd.Series", path: Path) -> list[Any]:
    missing = int(column.isna().sum())
    if missing:
        first = int(column.isna().to_numpy().argmax()) + 1
        raise UserError(
            f"{path}: the label {column.name!r} is missing in {missing} rows, first in row {first}; "
            "remove them."
        )
    labels = column.tolist()
    kinds = len(set(labels))
    if kinds < 2:
        raise UserError(
            f"{path}: the label {column.name!r} is {labels[0]!r} in every row; there is nothing to learn."
        )
    if kinds > _MANY_LABELS:
        raise UserError(
            f"{path}: the label {column.name!r} has {kinds:,} different values; is it an identifier, or a "
            f"number to predict? At most {_MANY_LABELS:,} classes are compared."
        )
    return [int(one) if isinstance(one, float) and one.is_integer() else one for one in labels]


def _columns(
    table: "pd.DataFrame", features: list[str], named: set[str]
) -> tuple[list[list[Any]], list[str]]:
    """Return the values of every column, None where missing, and the names of the nominal ones."""
    import numpy as np
    import pandas as pd

    found, words = [], []
    for name in features:
        column = table[name]
        if name not in named and pd.api.types.is_bool_dtype(column):
            words.append(name)
        elif name in named or not pd.api.types.is_numeric_dtype(column):
            dates = None if name in named else _dates(column)
            if dates is None:
                words.append(name)
            else:
                column = dates
        if name in words:
            gone = column.isna().tolist()
            found.append([None if no else str(value) for value, no in zip(column, gone, strict=True)])
            continue
        numbers = column.to_numpy(dtype=np.float64, na_value=np.nan)
        if np.isinf(numbers).any():
            row = int(np.isinf(numbers).argmax()) + 1
            raise UserError(f"the column {name!r} is infinite in row {row}; clip it, or leave the value out.")
        found.append([None if value != value else value for value in numbers.tolist()])
    return found, words


def _dates(column: "pd.Series") -> "pd.Series | None":
    """Return a column of dates as seconds, None if it holds anything else."""
    import numpy as np
    import pandas as pd

    if not pd.api.types.is_datetime64_any_dtype(column):
        known = column.dropna()
        first = str(known.iloc[0]) if len(known) else ""
        if not re.match(r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}", first):
            return None
        column = pd.to_datetime(column, errors="coerce", utc=True, format="mixed")
        if int(column.notna().sum()) < len(known):
            return None
    seconds = column.to_numpy(dtype="datetime64[ns]").astype(np.int64) / 1e9
    return pd.Series(np.where(column.isna(), np.nan, seconds))
