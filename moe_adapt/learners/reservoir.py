"""A replay buffer that is a uniform sample of everything that came by.

Reservoir sampling (Vitter's algorithm R): sample number n, counted from 0, is kept with probability
``capacity / (n + 1)`` and then replaces a random one. Samples are kept as tensors in buffers, so they are in
every checkpoint, and their bytes are counted in every result.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moe_adapt.errors import UserError
from moe_adapt.learners.growth import TensorStore, grow_rows
from moe_adapt.streams import Batch

__all__ = ["ReservoirBuffer", "join"]


class ReservoirBuffer(nn.Module):
    """A uniform sample of a stream of samples.

    Args:
        capacity: Samples kept.

    Attributes:
        seen: Samples offered so far.

    Raises:
        UserError: If the capacity is not positive.
    """

    seen: Tensor

    def __init__(self, capacity: int) -> None:
        super().__init__()
        if capacity < 1:
            raise UserError(f"the replay buffer needs a capacity of at least 1, got {capacity}.")
        self.capacity = capacity
        self.columns = TensorStore()
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def __len__(self) -> int:
        return min(int(self.seen), self.capacity)

    @torch.no_grad()
    def add(self, batch: Batch) -> None:
        """Offer the samples of a batch, in their order; everything in it that is a tensor is kept."""
        tensors = {key: value.detach() for key, value in batch.items() if isinstance(value, Tensor)}
        slots: dict[int, int] = {}
        count = int(self.seen)
        for index in range(len(next(iter(tensors.values())))):
            slot = count if count < self.capacity else int(torch.randint(count + 1, ()))
            if slot < self.capacity:
                slots[slot] = index
            count += 1
        self.seen.fill_(count)
        if slots:
            places, rows = torch.tensor(list(slots)), torch.tensor(list(slots.values()))
            for key, value in tensors.items():
                self._put(key, places.to(value.device), value[rows.to(value.device)])

    def _put(self, key: str, places: Tensor, values: Tensor) -> None:
        fill = float("nan") if values.is_floating_point() else 0
        old = self.columns[key] if key in self.columns else values.new_zeros(0, *values.shape[1:])
        if values.ndim == 2 and old.shape[1] != values.shape[1]:
            width = max(old.shape[1], values.shape[1])
            old, values = (F.pad(x, (0, width - x.shape[1]), value=fill) for x in (old, values))
        old = grow_rows(old, int(places.max()) + 1).clone()
        old[places] = values
        self.columns[key] = old

    def draw(self, count: int) -> Batch:
        """Return `count` samples (or all, if there are fewer), each at most once."""
        chosen = torch.randperm(len(self))[:count]
        batch = {key: self.columns[key][chosen.to(self.seen.device)] for key in self.columns}
        mask = batch.get("attention_mask")
        if mask is None:
            return batch
        length = int(mask.sum(dim=1).max())
        whole = mask.shape[1]
        return {k: v[:, :length] if v.ndim == 2 and v.shape[1] == whole else v for k, v in batch.items()}

    def nbytes(self) -> int:
        """Return the bytes of what is kept."""
        return sum(self.columns[key].nbytes for key in self.columns)


def join(*batches: Batch) -> dict[str, Any]:
    """Return batches as one, of the tensors that all have; sequences are padded with 0 at their end.

    >>> join({"ids": torch.ones(1, 2)}, {"ids": torch.ones(1, 1)})["ids"].tolist()
    [[1.0, 1.0], [1.0, 0.0]]
    """
    keys = [key for key, value in batches[0].items() if isinstance(value, Tensor)]
    joined = {}
    for key in keys:
        if not all(key in batch for batch in batches):
            continue
        parts = [batch[key] for batch in batches]
        if parts[0].ndim == 2:
            width = max(part.shape[1] for part in parts)
            parts = [F.pad(part, (0, width - part.shape[1])) for part in parts]
        joined[key] = torch.cat(parts)
    return joined
