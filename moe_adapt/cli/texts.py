"""Texts that a command is given in a file."""

from pathlib import Path
from typing import Any

from moe_adapt.errors import UserError
from moe_adapt.textfiles import json_lines, reader_suffix, text_lines

__all__ = ["read_examples", "read_texts"]

#: Endings of files with columns; what has another one is a text per line.
_TABLES = (".csv", ".tsv", ".json", ".parquet")
#: Columns of what a row is answered with.
_ANSWERS = ("response", "answer", "output", "completion")


def read_texts(path: Path) -> list[str]:
    """Return the texts of a file: one per line, or the texts or prompts of a table's rows; packed or not.

    Raises:
        UserError: If there is no such file, a row has no text, or there is none at all.
    """
    return [text if isinstance(text, str) else text[0] for text in read_examples(path, False)]


def read_examples(path: Path, pairs: bool) -> list[str | tuple[str, str]]:
    """Return the texts of a file; with `pairs`, a row that has an answer gives both.

    Raises:
        UserError: If there is no such file, a row has no text, or there is none at all.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}; give one with a text per line.")
    texts: list[str | tuple[str, str]]
    if reader_suffix(path) == ".jsonl":
        texts = [_example(row, f"{path}, line {number}", pairs) for number, row in json_lines(path)]
    elif reader_suffix(path) in _TABLES:
        from moe_adapt.data.readers import read_rows

        rows: Any = enumerate(read_rows(path), start=1)
        texts = [_example(row, f"{path}, row {number}", pairs) for number, row in rows]
    else:
        texts = [line.strip() for line in text_lines(path, universal=True) if line.strip()]
    if not texts:
        raise UserError(f"{path} holds no text.")
    return texts


def _example(row: dict[str, Any], where: str, pairs: bool) -> str | tuple[str, str]:
    """Return the text of a row, or text and answer."""
    text = next((row[name] for name in ("text", "prompt") if row.get(name) is not None), None)
    if not isinstance(text, str):
        raise UserError(f"{where}: expected a text in 'text' or 'prompt', got {text!r}.")
    answer = next((row[name] for name in _ANSWERS if row.get(name) is not None), None)
    return (text, str(answer)) if pairs and answer is not None else text
