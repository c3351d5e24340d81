"""Several examples in one row, each attending to itself alone.

Rows of one example each are mostly padding where examples are short. Here a row of at most `room` tokens
holds several, placed by best-fit decreasing: the longest first, each into the fullest row that has room. The
positions of every example count from 0. From a position that starts again transformers makes a mask in which
examples do not see each other, if it gets no other mask. The padding at the end is an example of its own.
The first token of an example is never learned: its prediction would come from the example before.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from moe_adapt.data.prompts import IGNORED, Example

__all__ = ["Packed", "pack_examples", "packed_batch"]


@dataclass(frozen=True)
class Packed:
    """Examples that share a row.

    Attributes:
        examples: They, in their order.
    """

    examples: list[Example]

    @property
    def input_ids(self) -> list[int]:
        """Token numbers of all examples, [S]."""
        return [token for example in self.examples for token in example.input_ids]

    @property
    def labels(self) -> list[int]:
        """Labels of all examples, [S]."""
        return [label for example in self.examples for label in (IGNORED, *example.labels[1:])]

    @property
    def positions(self) -> list[int]:
        """Position of every token in its own example, [S]."""
        return [place for example in self.examples for place in range(len(example.input_ids))]


def pack_examples(examples: Sequence[Example], room: int) -> list[Packed]:
    """Put examples into rows of at most `room` tokens.

    Args:
        examples: The examples, none longer than `room`.
        room: Most tokens of a row.

    >>> short = [Example([1] * n, [1] * n) for n in (3, 5, 2)]
    >>> [[len(e.input_ids) for e in row.examples] for row in pack_examples(short, 6)]
    [[5], [3, 2]]
    """
    order = sorted(range(len(examples)), key=lambda place: -len(examples[place].input_ids))
    rows: list[list[int]] = []
    free: list[tuple[int, int]] = []  # room that is left in a row, and its number; ascending
    for place in order:
        length = len(examples[place].input_ids)
        fitting = bisect_left(free, (length, -1))
        if fitting == len(free):
            rows.append([place])
            insort(free, (room - length, len(rows) - 1))
            continue
        left, row = free.pop(fitting)
        rows[row].append(place)
        insort(free, (left - length, row))
    return [Packed([examples[place] for place in row]) for row in rows]


def packed_batch(rows: Sequence[Packed], pad: int) -> dict[str, Tensor]:
    """Return a batch of packed rows.

    Args:
        rows: The rows.
        pad: The padding token.

    Returns:
        ``input_ids``, ``attention_mask`` (the real tokens), ``position_ids`` and ``labels``, [B, S] each.
    """
    ids = [torch.tensor(row.input_ids) for row in rows]
    longest = max(map(len, ids))
    positions = [row.positions + list(range(longest - len(row.positions))) for row in rows]
    return {
        "input_ids": pad_sequence(ids, batch_first=True, padding_value=pad),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
        "position_ids": torch.tensor(positions),
        "labels": pad_sequence(
            [torch.tensor(row.labels) for row in rows], batch_first=True, padding_value=IGNORED
        ),
    }
