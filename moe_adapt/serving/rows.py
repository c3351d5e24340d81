"""Rows in and answers out, one after the other: files larger than memory, standard input, CSV and JSONL."""

import csv
import io
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from moe_adapt.data.streaming import stream_rows
from moe_adapt.errors import UserError
from moe_adapt.serving.known import unknown_values
from moe_adapt.textfiles import json_object, separated_cells

__all__ = [
    "Scores",
    "answered",
    "batched",
    "json_lines",
    "open_output",
    "read_rows",
    "table_lines",
    "with_answer",
]


def read_rows(source: str, column: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file, of standard input (``-``), or of any table that training reads.

    A line of standard input is a JSON object, or a text. Other sources are read row by row where they can be.

    Args:
        source: The file, or ``-``.
        column: Column of a line that is a text.

    Raises:
        UserError: If the file is not there, or a row cannot be read; the message names the line.
    """
    if source == "-":
        yield from json_lines(_decoded(sys.stdin, "standard input"), "standard input", column)
        return
    yield from map(dict, stream_rows(source, "test"))


def table_lines(
    lines: Iterable[str], name: str, tabs: bool, heads: Sequence[str] | None = None, first: int = 1
) -> Iterator[dict[str, Any]]:
    """Yield the rows of a CSV or TSV text.

    Args:
        lines: Its lines with their ends.
        name: What messages call it.
        tabs: Whether tabs are between two cells; else commas are.
        heads: Names of the columns; None takes the first line.
        first: Number of the first line, for messages.

    Raises:
        UserError: If a row has too many or too few cells, or a quote is left open.
    """
    rows = separated_cells(lines, name, tabs, heads, first)
    names = next(rows, ())
    for cells in rows:
        yield dict(zip(names, cells, strict=True))


def json_lines(
    lines: Iterable[str], name: str, column: str | None = None, first: int = 1
) -> Iterator[dict[str, Any]]:
    """Yield the rows of JSON lines.

    Args:
        lines: The lines.
        name: What messages call them.
        column: Column of a line that is a text; None takes objects alone.
        first: Number of the first line, for messages.

    Raises:
        UserError: If a line is no object.
    """
    for number, line in enumerate(lines, start=first):
        text = line.strip().removeprefix("\ufeff")
        if text and column is not None and not text.startswith("{"):
            yield {column: text}
        elif text:
            yield json_object(text, f"{name}, line {number}")


def _decoded(file: TextIO, name: str) -> Iterator[str]:
    try:
        yield from file
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is not UTF-8 text: convert it first.") from error


def batched(rows: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Yield lists of `size` rows, the last one shorter."""
    batch: list[Any] = []
    for row in rows:
        batch.append(row)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def with_answer(row: Mapping[str, Any], number: int, answer: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row with its answer; input columns stay, a row without ``id`` gets its number.

    Raises:
        UserError: If the input has a column of the answer's name.
    """
    taken = sorted(set(row) & set(answer))
    if taken:
        raise UserError(
            f"the input has a column {taken[0]!r} already, which the answer would replace: rename it."
        )
    return {**({} if "id" in row else {"id": number}), **row, **answer}


def answered(
    model: Any, batch: Sequence[Mapping[str, Any]], number: int, top: int
) -> Iterator[tuple[dict[str, Any], Any, str, tuple[str, str] | None]]:
    """Yield the rows of a batch with their answers.

    Args:
        model: The classifier.
        batch: Rows.
        number: Number of the first one.
        top: Classes to name.

    Yields:
        The row with its answer, its label, the predicted class; column and value where the row says whose it
        is and nothing was trained for that one.

    Raises:
        UserError: If a row cannot be answered.
    """
    column = model.domain_column
    inputs = [model.inputs_of(row, number + place) for place, row in enumerate(batch)]
    domains = None if column is None else [row.get(column) for row in batch]
    answers = model(inputs, top, domains=domains)
    for place, (row, answer) in enumerate(zip(batch, answers, strict=True)):
        unknown = unknown_values(model.adapters[model.first], [row.get(column)]) if column else []
        yield (
            with_answer(row, number + place, answer.row(top > 1)),
            row.get(model.label_column),
            answer.prediction,
            (str(column), unknown[0]) if unknown else None,
        )


@contextmanager
def open_output(target: str | None, overwrite: bool) -> Iterator[Any]:
    """Give a function that writes one row; the file is there as a whole, or not at all.

    Args:
        target: A ``.jsonl`` or ``.csv`` file; None prints JSON lines.
        overwrite: Whether a file that is there may be replaced.

    Raises:
        UserError: If the file is there already, or of another kind.
    """
    if target is None:
        yield lambda row: print(json.dumps(row, ensure_ascii=False), flush=True)
        return
    path = Path(target)
    if path.suffix not in (".jsonl", ".csv"):
        raise UserError(f"--to {target}: expected a file that ends in .jsonl or .csv.")
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists already; choose another file or replace it with --overwrite.")
    path.parent.mkdir(parents=True, exist_ok=True)
    work = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with work.open("w", encoding="utf-8", newline="") as file:
            yield _csv_writer(file) if path.suffix == ".csv" else _json_writer(file)
        work.replace(path)
    finally:
        work.unlink(missing_ok=True)


def _json_writer(file: TextIO) -> Any:
    return lambda row: file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _csv_writer(file: TextIO) -> Any:
    heads: list[str] = []

    def write(row: Mapping[str, Any]) -> None:
        if not heads:
            heads.extend(row)
            csv.writer(file).writerow(heads)
        line = io.StringIO()
        cells = (row.get(head, "") for head in heads)
        plain = [json.dumps(cell) if isinstance(cell, (list, dict)) else cell for cell in cells]
        csv.writer(line).writerow(plain)
        file.write(line.getvalue())

    return write


class Scores:
    """Accuracy and macro F1 of predictions, where rows have labels.

    Attributes:
        pairs: Rows by (label, prediction).
        unlabelled: Rows without a label.
    """

    def __init__(self) -> None:
        self.pairs: dict[tuple[str, str], int] = {}
        self.unlabelled = 0

    def add(self, label: Any, prediction: str) -> None:
        """Count a row; a label of None or nothing is none."""
        if label is None or label == "":
            self.unlabelled += 1
            return
        key = (str(label), prediction)
        self.pairs[key] = self.pairs.get(key, 0) + 1

    def __str__(self) -> str:
        total = sum(self.pairs.values())
        if not total:
            return ""
        right = sum(count for (label, said), count in self.pairs.items() if label == said)
        names = {name for pair in self.pairs for name in pair}
        f1 = []
        for name in names:
            hits = self.pairs.get((name, name), 0)
            said = sum(count for (_, prediction), count in self.pairs.items() if prediction == name)
            true = sum(count for (label, _), count in self.pairs.items() if label == name)
            f1.append(2 * hits / (said + true) if said + true else 0.0)
        return f"{total:,} labelled rows: accuracy {right / total:.4f}, macro F1 {sum(f1) / len(f1):.4f}"
