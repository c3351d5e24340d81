"""Texts that a command is given in a file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moe_adapt.errors import UserError
from moe_adapt.textfiles import json_lines, reader_suffix, text_lines

__all__ = ["LABELS", "RESPONSES", "read_examples", "read_texts"]

#: Endings of files with columns; what has another one is a text per line.
_TABLES = (".csv", ".tsv", ".json", ".parquet")
#: Columns of what a row is answered with, in the order in which they are looked for.
RESPONSES = ("response", "answer", "output", "completion")
#: Columns of the class that a row is of.
LABELS = ("label", "category", "answer")


def read_texts(path: Path) -> list[str]:
    """Return the texts of a file: one per line, or the texts or prompts of a table's rows; packed or not.

    Raises:
        UserError: If there is no such file, a row has no text, or there is none at all.
    """
    return [text if isinstance(text, str) else text[0] for text in read_examples(path)]


def read_examples(path: Path, columns: Sequence[str] = ()) -> list[str | tuple[str, str]]:
    """Return the texts of a file; a row that has one of some columns gives both.

    Raises:
        UserError: If there is no such file, a row has no text, or there is none at all.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}; give one with a text per line.")
    texts: list[str | tuple[str, str]]
    if reader_suffix(path) == ".jsonl":
        texts = [_example(row, f"{path}, line {number}", columns) for number, row in json_lines(path)]
    elif reader_suffix(path) in _TABLES:
        from moe_adapt.data.readers import read_rows

        rows: Any = enumerate(read_rows(path), start=1)
        texts = [_example(row, f"{path}, row {number}", columns) for number, row in rows]
    else:
        texts = [line.strip() for line in text_lines(path, universal=True) if line.strip()]
    if not texts:
        raise UserError(f"{path} holds no text.")
    return texts


def _example(row: dict[str, Any], where: str, columns: Sequence[str]) -> str | tuple[str, str]:
    """Return the text of a row, or text and what it is answered with."""
    text = next((row[name] for name in ("text", "prompt") if row.get(name) is not None), None)
    if not isinstance(text, str):
        raise UserError(f"{where}: expected a text in 'text' or 'prompt', got {text!r}.")
    answer = next((row[name] for name in columns if row.get(name) not in (None, "")), None)
    return text if answer is None else (text, str(answer))
