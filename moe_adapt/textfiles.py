"""Files of text, read as they are written: lines, JSON lines, cells; also packed ones, row by row.

* CSV: commas, double quotes as in RFC 4180; a quote that is never closed is an error. TSV: tabs separate, and
  a quote is a character like any other. Every cell is a text; rows have as many cells as the header.
* JSON lines end at a line feed; other separators inside a string belong to it.

Text is UTF-8, with or without a byte-order mark, and may be packed (``.gz .bz2 .xz .zip .zst``). A path is a
path: nothing in it is a pattern or an address.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from moe_adapt.errors import UserError
from moe_adapt.reading import foreign

__all__ = [
    "COMPRESSIONS",
    "cell_reader",
    "json_lines",
    "json_object",
    "read_text",
    "reader_suffix",
    "separated_cells",
    "separated_rows",
    "text_lines",
    "unpacked",
]

#: A packed file that grows beyond both, bytes and ratio, is taken for one made to fill the memory.
MOST_BYTES, MOST_RATIO = 2**30, 200


def _zip(path: Path) -> Any:
    archive = zipfile.ZipFile(path)
    names = [name for name in archive.namelist() if not name.endswith("/")]
    if len(names) != 1:
        raise ValueError(f"it holds {len(names)} files, expected one")
    return archive.open(names[0])


def _zst(path: Path) -> Any:
    import pyarrow

    return pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd")


#: Ending -> opens a packed file for reading.
COMPRESSIONS: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zip": _zip,
    ".zst": _zst,
}


def reader_suffix(path: Path) -> str:
    """Return the ending that says what a file holds, without that of its compression.

    >>> reader_suffix(Path("a/train.CSV.gz"))
    '.csv'
    """
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in COMPRESSIONS]
    return suffixes[-1] if suffixes else ""


class _Limited(io.RawIOBase):
    """The bytes of a packed file, up to a limit."""

    def __init__(self, file: Any, limit: int) -> None:
        self.file, self.limit, self.size = file, limit, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        part = self.file.read(len(buffer))
        self.size += len(part)
        if self.size > self.limit:
            raise ValueError(f"it unpacks to more than {self.limit:,} bytes")
        buffer[: len(part)] = part
        return len(part)


def unpacked(path: Path) -> io.BufferedReader:
    """Open a file, a packed one as what is inside it; its reader meets errors of the format."""
    opened = COMPRESSIONS.get(path.suffix.lower())
    if opened is None:
        return path.open("rb")
    limit = max(MOST_BYTES, MOST_RATIO * path.stat().st_size)
    return io.BufferedReader(_Limited(opened(path), limit), 2**16)


def text_lines(path: Path, universal: bool = False) -> Iterator[str]:
    """Yield the lines of a text file with their ends, without its byte-order mark.

    Args:
        path: The file.
        universal: Whether a carriage return ends a line as well; nothing else does.

    Raises:
        UserError: If it cannot be read or unpacked, or is not UTF-8.
    """
    kind = f"a {path.suffix} file" if path.suffix.lower() in COMPRESSIONS else "a text file"
    with foreign(path, kind, "download or pack it again"), unpacked(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="" if universal else "\n")
        seen = 0
        try:
            for line in text:
                yield line
                seen += 1
        except UnicodeDecodeError as error:
            number = seen + error.object[: error.start].count(b"\n") + 1
            raise UserError(f"{path} is not UTF-8 text (line {number}): save it as UTF-8.") from error


def read_text(path: Path) -> str:
    """Return a text file, unpacked and without its byte-order mark.

    Raises:
        UserError: If it cannot be unpacked or is not UTF-8.
    """
    return "".join(text_lines(path))


def json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects of a file of JSON lines with their line numbers, from 1; empty lines do not count.

    Raises:
        UserError: If a line is not an object, or the file cannot be unpacked or is not UTF-8.
    """
    for number, line in enumerate(text_lines(path), start=1):
        if line.strip():
            yield number, json_object(line, f"{path}, line {number}")


def json_object(line: str, where: str) -> dict[str, Any]:
    """Return the object in a line of JSON.

    Args:
        line: The line.
        where: How messages call it.

    Raises:
        UserError: If it is not JSON, or another value.
    """
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON: {error}; correct the line.") from error
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected an object, got {line.strip()[:80]!r}.")
    return row


def separated_rows(path: Path, names: Sequence[str] | None = None) -> Iterator[Sequence[str]]:
    """Yield the names of the columns of a CSV or TSV file, then its rows, which are as long.

    Args:
        path: The file; ``.tsv`` in its name says that tabs separate.
        names: Names of the columns if there is no header line.

    Raises:
        UserError: If a row is longer or shorter, a quote is left open, two columns share a name, or the file
            cannot be unpacked or is not UTF-8.
    """
    return separated_cells(text_lines(path, universal=True), str(path), reader_suffix(path) == ".tsv", names)


def cell_reader(lines: Iterable[str], tabs: bool) -> Any:
    """Return a `csv.reader` of lines: tabs and no quotes, or commas and closed quotes."""
    csv.field_size_limit(sys.maxsize)
    style: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tabs else {"strict": True}
    return csv.reader(lines, **style)


def separated_cells(
    lines: Iterable[str], source: str, tabs: bool, names: Sequence[str] | None = None, first: int = 1
) -> Iterator[Sequence[str]]:
    """Yield the names of the columns of separated text, then its rows, which are as long.

    Args:
        lines: The lines with their ends.
        source: What messages call them.
        tabs: Whether tabs separate; else commas do.
        names: Names of the columns if there is no header line.
        first: Number of the first line, for messages.

    Raises:
        UserError: If a row is longer or shorter, a quote is left open, two columns share a name, or something
            else separates the cells of the header.
    """
    reader = cell_reader(lines, tabs)
    width = 0
    try:
        if names is not None:
            width = _check_names(names, source)
            yield names
        for cells in reader:
            if not cells:
                continue
            if not width:
                _check_separator(cells, source, ";|," if tabs else ";|\t")
                width, names = _check_names(cells, source), cells
            elif len(cells) != width:
                quotes = "" if tabs else " (a cell that holds a comma or a quote stands in double quotes)"
                raise UserError(
                    f"{source}, line {reader.line_num + first - 1} has {len(cells)} cells, expected {width}: "
                    f"{', '.join((names or [])[:10])}{quotes}."
                )
            yield cells
    except csv.Error as error:
        where = f"{source}, line {reader.line_num + first - 1}"
        raise UserError(f"{where}: {error}; close the quote, or double it.") from error


def _check_names(names: Sequence[str], source: str) -> int:
    twice = next((name for name in names if list(names).count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{source} has two columns named {twice!r}: rename one.")
    return len(names)


def _check_separator(header: Sequence[str], source: str, others: str) -> None:
    other = next((mark for mark in others if mark in header[0]), None) if len(header) == 1 else None
    if other is not None:
        raise UserError(
            f"{source} has one column, {header[0][:60]!r}: are its cells separated by {other!r}? Commas "
            "separate those of a .csv file, tabs those of a .tsv file; save it as one of them."
        )
