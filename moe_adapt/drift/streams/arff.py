"""Weka's format of tables: declared columns, then rows of cells that may stand in either kind of quotes.

Columns that are declared numeric become numbers, all others keep their text; ``?`` is missing. Sparse rows
are not read.
"""

import re
from pathlib import Path
from typing import Any

from moe_adapt.errors import UserError
from moe_adapt.textfiles import text_lines

__all__ = ["read_arff"]

_NUMERIC = ("numeric", "real", "integer")
_ATTRIBUTE = re.compile(r"@attribute\s+('[^']*'|\"[^\"]*\"|\S+)\s+(.*)", re.IGNORECASE)
_CELL = re.compile(r"\s*(?:'((?:[^'\\]|\\.)*)'|\"((?:[^\"\\]|\\.)*)\"|([^,]*?))\s*(?:,|\Z)")


def read_arff(path: Path) -> dict[str, list[Any]]:
    """Return the cells of every column, None where missing.

    Raises:
        UserError: If a line is not of the format, or a row has another number of cells than declared columns.
    """
    numeric: dict[str, bool] = {}
    rows: list[list[Any]] = []
    data = False
    for number, line in enumerate(text_lines(path, universal=True), start=1):
        word = line.strip()
        if not word or word.startswith("%"):
            continue
        if data:
            rows.append(_row(word, numeric, f"{path}, line {number}"))
        elif word.lower().startswith("@attribute"):
            found = _ATTRIBUTE.match(word)
            name = found[1].strip("'\"") if found else ""
            if found is None or name in numeric:
                what = "declares a column twice" if found else "does not declare a column"
                raise UserError(f"{path}: the line {word[:80]!r} {what}.")
            numeric[name] = found[2].lower().split()[0] in _NUMERIC
        data = data or word.lower().startswith("@data")
    if not data:
        raise UserError(f"{path} has no line '@data'.")
    return {name: [row[place] for row in rows] for place, name in enumerate(numeric)}


def _row(line: str, numeric: dict[str, bool], where: str) -> list[Any]:
    cells = _cells(line)
    if len(cells) != len(numeric):
        raise UserError(f"{where} has {len(cells)} cells; the file declares {len(numeric)} columns.")
    found: list[Any] = []
    for cell, (name, is_number) in zip(cells, numeric.items(), strict=True):
        try:
            found.append(float(cell) if is_number and cell is not None else cell)
        except ValueError as error:
            raise UserError(f"{where} has {cell[:60]!r} in the numeric column {name!r}.") from error
    return found


def _cells(line: str) -> list[Any]:
    """Return the cells of a row, None for a question mark that is not in quotes.

    >>> _cells("1.5, 'a, b', ?, '?'")
    ['1.5', 'a, b', None, '?']
    """
    found: list[Any] = []
    place, more = 0, True
    while more:
        match = _CELL.match(line, place)
        if match is None:
            return []
        single, double, plain = match.groups()
        quoted = single if single is not None else double
        found.append((None if plain == "?" else plain) if quoted is None else re.sub(r"\\(.)", r"\1", quoted))
        place, more = match.end(), match.group().endswith(",")
    return found
