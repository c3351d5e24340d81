"""Texts that a command is given in a file."""

import json
from pathlib import Path
from typing import Any

from moe_adapt.errors import UserError

__all__ = ["read_examples", "read_texts"]

#: Columns of what a row is answered with.
_ANSWERS = ("response", "answer", "output", "completion")


def read_texts(path: Path) -> list[str]:
    """Return the texts of a file: one per line, or the texts or prompts of JSONL rows.

    Raises:
        UserError: If there is no such file, or it holds no text.
    """
    return [text if isinstance(text, str) else text[0] for text in read_examples(path, False)]


def read_examples(path: Path, pairs: bool) -> list[str | tuple[str, str]]:
    """Return the texts of a file; with `pairs`, a row that has an answer gives both.

    Raises:
        UserError: If there is no such file, or it holds no text.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}; give one with a text per line.")
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        texts: list[str | tuple[str, str]] = [*lines]
        if path.suffix == ".jsonl":
            texts = [_example(json.loads(line), pairs) for line in lines]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not UTF-8 text with one text per line, or JSONL rows with a text."
        ) from error
    if not texts:
        raise UserError(f"{path} holds no text.")
    return texts


def _example(row: dict[str, Any], pairs: bool) -> str | tuple[str, str]:
    """Return the text of a row, or text and answer."""
    text = str(row["text"] if "text" in row else row["prompt"])
    answer = next((row[name] for name in _ANSWERS if row.get(name) is not None), None)
    return (text, str(answer)) if pairs and answer is not None else text
