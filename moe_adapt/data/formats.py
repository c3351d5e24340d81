"""Known forms of rows beside columns and templates: Alpaca's instruction, input and output.

A row's ``input`` belongs to its instruction; leaving it out makes different questions equal. Here the two
become the prompt, so that the usual templates ``{prompt}`` and `` {response}`` apply; a template that names
the instruction and not the input gets both.
"""

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["alpaca_row", "is_alpaca", "unread"]


def is_alpaca(columns: Sequence[str]) -> bool:
    """Return whether these are the columns of Alpaca's form."""
    return {"instruction", "output"} <= set(columns) and "prompt" not in columns


def alpaca_row(row: Mapping[str, Any], fields: Sequence[str] = ()) -> dict[str, Any]:
    r"""Return a row of Alpaca's form with ``prompt`` and ``response`` beside its own columns.

    Args:
        row: The row.
        fields: What the template reads; without ``input`` the instruction gets it.

    >>> alpaca_row({"instruction": "Translate.", "input": "Hund", "output": "dog"})["prompt"]
    'Translate.\n\nHund'
    >>> alpaca_row({"instruction": "Translate.", "input": "Hund"}, ["instruction", "input"])["instruction"]
    'Translate.'
    """
    given = row.get("input")
    prompt = f"{row['instruction']}\n\n{given}" if given else row["instruction"]
    whole = {} if "input" in fields else {"instruction": prompt}
    return {"response": row.get("output"), **row, **whole, "prompt": prompt}


def unread(columns: Sequence[str], read: Sequence[str]) -> list[str]:
    """Return the columns that nothing reads, in their order.

    >>> unread(["id", "text", "label"], ["text", "label"])
    ['id']
    """
    return [name for name in columns if name not in set(read)]
