"""Cross-evaluation: the loss of every key's expert on the training rows of every other key."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device

from moe_adapt.errors import UserError

__all__ = ["cross_losses", "rows_by_key"]


def rows_by_key(data: Any, keys: int) -> dict[int, list[int]]:
    """Return the numbers of the training rows of each key.

    Args:
        data: A data module with domains, set up.
        keys: How many there are.

    Raises:
        UserError: If one of them has no row to train on.
    """
    rows = data.splits["train"]
    found: dict[int, list[int]] = {key: [] for key in range(keys)}
    for start in range(0, len(rows), data.batch_size):
        numbers = range(start, min(start + data.batch_size, len(rows)))
        ids = data.collate([rows[number] for number in numbers])["domain_ids"]
        for number, key in zip(numbers, ids.tolist(), strict=True):
            found[key].append(number)
    empty = next((key for key, numbers in found.items() if not numbers), None)
    if empty is not None:
        raise UserError(
            f"{data.domains.column} {data.domains.names[empty]!r} has no training row left once rows are "
            "held out: give validation rows, or set validation_fraction to 0."
        )
    return found


@torch.inference_mode()
def cross_losses(
    module: Any,
    data: Any,
    most: int = 64,
    known: Mapping[int, np.ndarray] | None = None,
    done: Callable[[int, np.ndarray], None] = lambda key, row: None,
) -> np.ndarray:
    """Return the loss of each key's expert (column) on each key's training rows (row), [T, T].

    Args:
        module: A trained module whose experts are chosen by `domain_ids` (selector ``keyed``).
        data: Its data module, set up.
        most: Rows that are read of each key, the first ones.
        known: Rows of the matrix that were computed before.
        done: Gets the number of each new row of the matrix and the row.

    Raises:
        UserError: If a key has no training row.
    """
    keys = len(data.domains.names)
    losses = np.zeros((keys, keys))
    module.eval()
    for key, numbers in rows_by_key(data, keys).items():
        if known is not None and key in known:
            losses[key] = known[key]
            continue
        losses[key] = _losses_of_all(module, data, numbers[:most], keys)
        done(key, losses[key])
    return losses


def _losses_of_all(module: Any, data: Any, numbers: list[int], keys: int) -> np.ndarray:
    """Return the mean loss of every key's expert on some rows, [T]."""
    rows = data.splits["train"]
    sums = np.zeros(keys)
    for start in range(0, len(numbers), data.batch_size):
        part = numbers[start : start + data.batch_size]
        batch = move_data_to_device(data.collate([rows[number] for number in part]), module.device)
        for key in range(keys):
            ids = torch.full_like(batch["domain_ids"], key)
            sums[key] += float(module.task_loss({**batch, "domain_ids": ids})) * len(part)
    return sums / len(numbers)
