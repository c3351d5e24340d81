"""Files of rows as tables: ``.csv .tsv .jsonl .json .parquet .txt``; what is a text in the file is that text.

`moe_adapt.textfiles` says how text is read. ``.json`` is one list of objects, one object of columns, or
lines; values have JSON's own types. Parquet has its schema. A ``.txt`` file is one row, the document.
"""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from datasets import Dataset

from moe_adapt.data.table import Table
from moe_adapt.errors import UserError
from moe_adapt.reading import foreign
from moe_adapt.textfiles import json_lines, read_text, reader_suffix, separated_rows, unpacked

__all__ = ["READERS", "read_rows"]


def _jsonl(path: Path, names: list[str] | None) -> Table:
    return Table.from_rows(row for _, row in json_lines(path))


def _json(path: Path, names: list[str] | None) -> Table:
    text = read_text(path)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return _jsonl(path, names)
    if isinstance(content, list) and all(isinstance(row, dict) for row in content):
        return Table.from_rows(content)
    columns = content.values() if isinstance(content, dict) else ()
    if columns and all(isinstance(c, list) for c in columns) and len({len(c) for c in columns}) == 1:
        return Table(content)
    if isinstance(content, dict):
        return Table.from_rows([content])
    raise UserError(f"{path} holds {text.strip()[:60]!r}: expected a list of objects.")


def _separated(path: Path, names: list[str] | None) -> Table:
    header, *rows = list(separated_rows(path, names)) or [[]]
    columns = zip(*rows, strict=True) if rows else ([] for _ in header)
    return Table(dict(zip(header, map(list, columns), strict=True)))


def _parquet(path: Path, names: list[str] | None) -> Dataset:
    with foreign(path, "a parquet file"), unpacked(path) as file:
        whole = isinstance(file.raw, io.FileIO)
        source: Any = pyarrow.memory_map(str(path)) if whole else pyarrow.BufferReader(file.read())
        return Dataset(pyarrow.parquet.read_table(source))


def _document(path: Path, names: list[str] | None) -> Table:
    return Table({"text": [read_text(path).replace("\r\n", "\n")]})


#: Ending -> reads a file, given the names of columns that have no header line.
READERS: dict[str, Callable[[Path, list[str] | None], Table | Dataset]] = {
    ".json": _json,
    ".jsonl": _jsonl,
    ".csv": _separated,
    ".tsv": _separated,
    ".parquet": _parquet,
    ".txt": _document,
}


def read_rows(path: Path, column_names: list[str] | None = None) -> Table | Dataset:
    """Return the rows of a file.

    Args:
        path: The file.
        column_names: Names of the columns of a CSV or TSV file without a header line.

    Raises:
        UserError: If its ending is unknown, it is empty, or its content is not as its ending says.
    """
    suffix = reader_suffix(path)
    if suffix not in READERS:
        raise UserError(f"{path} has the unknown extension {suffix!r}: expected one of {', '.join(READERS)}.")
    if path.stat().st_size == 0:
        raise UserError(f"the file {path} is empty.")
    return READERS[suffix](path, column_names)
