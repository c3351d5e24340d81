"""Multiple-choice questions, and plain text in blocks, as token sequences."""

from dataclasses import dataclass
from typing import Any

from moe_adapt.data.prompts import Example
from moe_adapt.errors import UserError, did_you_mean

__all__ = ["Question", "pack", "right_choice"]


@dataclass(frozen=True)
class Question:
    """A multiple-choice question.

    Attributes:
        choices: The prompt with each choice.
        answer: Index of the right choice.
    """

    choices: list[Example]
    answer: int


def right_choice(answer: Any, choices: list[str], number: int) -> int:
    """Return the index of the right choice, given as an index or as the choice's text.

    Args:
        answer: The value of the answer column.
        choices: The texts of the choices.
        number: The row's number, for the message.

    Raises:
        UserError: If it is neither.

    >>> right_choice("cold", ["hot", "cold"], number=0)
    1
    """
    if isinstance(answer, str) and answer in choices:
        return choices.index(answer)
    if isinstance(answer, str) and answer.isascii() and answer.isdigit():
        answer = int(answer)  # a cell of a CSV file is a text
    if isinstance(answer, int) and 0 <= answer < len(choices):
        return answer
    expected = f"an index from 0 to {len(choices) - 1}, or one of {choices!r}"
    near = did_you_mean(answer, choices) if isinstance(answer, str) else ""
    raise UserError(f"row {number} has the answer {answer!r}: expected {expected}.{near}")


def pack(documents: list[list[int]], length: int, end: int) -> list[Example]:
    """Join documents, each closed by the token `end`, and cut them into blocks that are learned whole.

    The last block may be shorter; it is left out only if it has a single token, which predicts nothing.

    >>> [block.input_ids for block in pack([[5, 6, 7], [8]], length=4, end=2)]
    [[5, 6, 7, 2], [8, 2]]
    """
    tokens = [token for document in documents for token in [*document, end]]
    blocks = [tokens[start : start + length] for start in range(0, len(tokens), length)]
    return [Example(block, list(block)) for block in blocks if len(block) > 1]
