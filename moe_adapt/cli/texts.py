"""Texts that a command is given in a file."""

import json
from pathlib import Path
from typing import Any

from moe_adapt.errors import UserError

__all__ = ["read_texts"]


def read_texts(path: Path) -> list[str]:
    """Return the texts of a file: one per line, or the texts or prompts of JSONL rows.

    Raises:
        UserError: If there is no such file, or it holds no text.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}; give one with a text per line.")
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        texts = [_text(json.loads(line)) for line in lines] if path.suffix == ".jsonl" else lines
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not UTF-8 text with one text per line, or JSONL rows with a text."
        ) from error
    if not texts:
        raise UserError(f"{path} holds no text.")
    return texts


def _text(row: dict[str, Any]) -> str:
    """Return the text of a row."""
    return str(row["text"] if "text" in row else row["prompt"])
