"""One batch of a list of samples: stack what has one shape, pad what has not, keep texts as lists."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["Batch", "collate"]

#: What a learner gets: tensors with the batch first, and lists where there are no numbers.
Batch = dict[str, Any]

#: What fills the end of shorter sequences; every other key is filled with 0.
PADDING = {"labels": -100}


def collate(samples: Sequence[dict[str, Any]] | Batch) -> Batch:
    """Return the batch of some samples.

    Numbers become a tensor [B], tensors of equal shape are stacked, one-dimensional tensors of unequal
    length are padded at their end (``labels`` with -100, others with 0), anything else stays a list. A batch
    that a data set read at once is returned as it is.

    >>> collate([{"ids": torch.tensor([5, 6]), "labels": 1}, {"ids": torch.tensor([7]), "labels": 0}])
    {'ids': tensor([[5, 6],
            [7, 0]]), 'labels': tensor([1, 0])}
    """
    if isinstance(samples, dict):
        return samples
    return {key: _column([sample[key] for sample in samples], PADDING.get(key, 0)) for key in samples[0]}


def _column(values: list[Any], padding: int) -> Tensor | list[Any]:
    first = values[0]
    if isinstance(first, int | float | np.integer | np.floating):
        return torch.tensor(values)
    if not isinstance(first, Tensor):
        return values
    if all(value.shape == first.shape for value in values):
        return torch.stack(values)
    return torch.nn.utils.rnn.pad_sequence(values, batch_first=True, padding_value=padding)
