"""Files of rows, read as they are written: what is a text in the file is that text.

* CSV: commas, double quotes as in RFC 4180; a quote that is never closed is an error. TSV: tabs separate, and
  a quote is a character like any other. Every cell is a text; rows have as many cells as the header.
* JSON lines end at a line feed; other separators inside a string belong to it. ``.json`` is one list of
  objects, one object of columns, or lines. Values have JSON's own types.
* Parquet has its schema. A ``.txt`` file is one row, the document.

Text is UTF-8, with or without a byte-order mark. All but parquet may be compressed (``.gz .bz2 .xz .zip
.zst``). A path is a path: nothing in it is a pattern or an address.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow
import pyarrow.parquet
from datasets import Dataset

from moe_adapt.data.table import Table
from moe_adapt.errors import UserError
from moe_adapt.reading import foreign

__all__ = ["COMPRESSIONS", "READERS", "json_lines", "read_rows", "read_text", "reader_suffix"]

#: A compressed file that grows beyond both, bytes and ratio, is taken for one made to fill the memory.
MOST_BYTES, MOST_RATIO = 2**30, 200


def _zip(path: Path) -> BinaryIO:
    archive = zipfile.ZipFile(path)
    names = [name for name in archive.namelist() if not name.endswith("/")]
    if len(names) != 1:
        raise ValueError(f"it holds {len(names)} files, expected one")
    return archive.open(names[0])  # type: ignore[return-value]


#: Ending -> opens a compressed file for reading.
COMPRESSIONS: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zip": _zip,
    ".zst": lambda path: pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd"),
}


def reader_suffix(path: Path) -> str:
    """Return the ending that says what a file holds, without that of its compression.

    >>> reader_suffix(Path("a/train.CSV.gz"))
    '.csv'
    """
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in COMPRESSIONS]
    return suffixes[-1] if suffixes else ""


def read_text(path: Path) -> str:
    """Return a text file, unpacked and without its byte-order mark.

    Raises:
        UserError: If it cannot be unpacked or is not UTF-8.
    """
    data = _unpacked(path)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UserError(f"{path} is not UTF-8 text (line {line}): save it as UTF-8.") from error


def _unpacked(path: Path) -> bytes:
    opened = COMPRESSIONS.get(path.suffix.lower())
    if opened is None:
        return path.read_bytes()
    limit = max(MOST_BYTES, MOST_RATIO * path.stat().st_size)
    parts, size = [], 0
    with foreign(path, f"a {path.suffix} file", "download or pack it again"), opened(path) as file:
        while part := file.read(2**20):
            parts.append(part)
            size += len(part)
            if size > limit:
                raise ValueError(f"it unpacks to more than {limit:,} bytes")
    return b"".join(parts)


def json_lines(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Return the objects of a file of JSON lines with their line numbers, from 1; empty lines do not count.

    Raises:
        UserError: If a line is not an object, or the file cannot be unpacked or is not UTF-8.
    """
    return _objects(read_text(path), path)


def _objects(text: str, path: Path) -> list[tuple[int, dict[str, Any]]]:
    found = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {number} is not JSON: {error}; correct the line.") from error
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}: expected an object, got {line.strip()[:80]!r}.")
        found.append((number, row))
    return found


def _jsonl(path: Path, names: list[str] | None) -> Table:
    return Table.from_rows(row for _, row in json_lines(path))


def _json(path: Path, names: list[str] | None) -> Table:
    text = read_text(path)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return Table.from_rows(row for _, row in _objects(text, path))
    if isinstance(content, list) and all(isinstance(row, dict) for row in content):
        return Table.from_rows(content)
    columns = content.values() if isinstance(content, dict) else ()
    if columns and all(isinstance(c, list) for c in columns) and len({len(c) for c in columns}) == 1:
        return Table(content)
    if isinstance(content, dict):
        return Table.from_rows([content])
    raise UserError(f"{path} holds {text.strip()[:60]!r}: expected a list of objects.")


def _separated(path: Path, names: list[str] | None) -> Table:
    text = read_text(path)
    tabs = reader_suffix(path) == ".tsv"
    style: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tabs else {"strict": True}
    before = csv.field_size_limit(sys.maxsize)
    lines = csv.reader(io.StringIO(text, newline=""), **style)
    try:
        rows = []
        for cells in lines:
            if not cells:
                continue
            if names is None:
                names = cells
            elif len(cells) != len(names):
                quotes = "" if tabs else " (a cell that holds a comma or a quote stands in double quotes)"
                raise UserError(
                    f"{path}, line {lines.line_num} has {len(cells)} cells, expected {len(names)}: "
                    f"{', '.join(names[:10])}{quotes}."
                )
            else:
                rows.append(cells)
    except csv.Error as error:
        raise UserError(f"{path}, line {lines.line_num}: {error}; close the quote, or double it.") from error
    finally:
        csv.field_size_limit(before)
    names = names or []
    repeated = [name for name in names if names.count(name) > 1]
    if repeated:
        raise UserError(f"{path} has two columns named {repeated[0]!r}: rename one.")
    columns = zip(*rows, strict=True) if rows else ([] for _ in names)
    return Table(dict(zip(names, map(list, columns), strict=True)))


def _parquet(path: Path, names: list[str] | None) -> Dataset:
    with foreign(path, "a parquet file"):
        if path.suffix.lower() in COMPRESSIONS:
            return Dataset(pyarrow.parquet.read_table(pyarrow.BufferReader(_unpacked(path))))
        return Dataset(pyarrow.parquet.read_table(pyarrow.memory_map(str(path))))


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
