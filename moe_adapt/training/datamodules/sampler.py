"""A shuffled order that can be taken up again anywhere.

The rows of epoch ``e`` are ``permutation(rng(seed, e))``: a pure function of seed and epoch, without a
position that could get lost. To continue in the middle of epoch ``e`` the sampler skips the rows that were
trained already; every other epoch is whole. Its length stays that of the whole epoch: Lightning counts
batches from there.

Lightning 2.6 does not fast-forward a resumed loader, and tells the sampler its epoch only after the first
iterator (and the prefetching of worker processes) has started. Both therefore come from the data module's
state, see `moe_adapt.training.datamodules.base`. The class is a ``DistributedSampler``, so that Lightning
leaves it in place: it shards for itself, every rank having the same number of batches.
"""

from collections.abc import Iterator, Mapping, Sequence, Sized
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

from moe_adapt.errors import UserError

__all__ = ["ResumableLoader", "SeededSampler", "epoch_order"]

#: Rows are grouped by length within windows of this many batches, so that the order stays mostly random.
GROUPING_WINDOW = 50


def epoch_order(
    rows: int, seed: int, epoch: int, lengths: Sequence[int] | None = None, batch_size: int = 1
) -> np.ndarray:
    """Return the order of one epoch, a permutation [rows].

    Args:
        rows: How many rows there are.
        seed: The seed of the run.
        epoch: The epoch; each has an order of its own.
        lengths: Length of each row [rows]. If given, rows of similar length come together: the permutation is
            cut into windows of 50 batches, each window sorted by length and its batches shuffled.
        batch_size: Rows per batch over all ranks; used for `lengths` alone.

    >>> epoch_order(5, seed=0, epoch=1).tolist() == epoch_order(5, seed=0, epoch=1).tolist()
    True
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(rows)
    if lengths is None:
        return order
    measure = np.asarray(lengths)
    grouped = []
    for start in range(0, rows, GROUPING_WINDOW * batch_size):
        window = order[start : start + GROUPING_WINDOW * batch_size]
        window = window[np.argsort(measure[window], kind="stable")]
        whole = len(window) // batch_size * batch_size
        batches = window[:whole].reshape(-1, batch_size)
        grouped += [rng.permutation(batches).reshape(-1), window[whole:]]
    return np.concatenate(grouped)


class SeededSampler(DistributedSampler):
    """Shuffled row numbers from (seed, epoch), sharded over ranks, resumable.

    Args:
        dataset: What is sampled. Its method ``set_epoch``, if any, hears of every new epoch.
        batch_size: Rows per batch of one rank.
        seed: The seed of the run.
        epoch: The epoch to start with.
        first_batch: How many batches of that epoch to leave out, since they were trained before.
        lengths: Length of each row, to group rows of similar length; None shuffles without grouping.
        num_replicas: Number of ranks.
        rank: This rank.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        seed: int = 0,
        epoch: int = 0,
        first_batch: int = 0,
        lengths: Sequence[int] | None = None,
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        super().__init__(dataset, num_replicas=num_replicas, rank=rank, shuffle=True, seed=seed)
        self.batch_size = batch_size
        self.lengths = lengths
        self.started = (epoch, first_batch)
        self.set_epoch(epoch)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iterator; Lightning calls this before every epoch."""
        super().set_epoch(epoch)
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)

    def __iter__(self) -> Iterator[int]:
        rows = len(self.dataset) if isinstance(self.dataset, Sized) else 0
        order = epoch_order(rows, self.seed, self.epoch, self.lengths, self.batch_size * self.num_replicas)
        mine = np.resize(order, self.total_size)[self.rank :: self.num_replicas]
        epoch, first_batch = self.started
        skip = first_batch * self.batch_size if self.epoch == epoch else 0
        return (int(row) for row in mine[skip:])


class ResumableLoader(DataLoader):
    """A loader over a `SeededSampler`, whose state is what its order depends on.

    Lightning takes a loader with these two methods for resumable, which it is: the position is in the data
    module's state, and the order follows from the facts below.
    """

    def state_dict(self) -> dict[str, Any]:
        """Return the facts that fix the order of the batches."""
        if not isinstance(self.sampler, SeededSampler):  # Trainer(overfit_batches=...) takes the sampler out
            return {}
        return {
            "rows": len(self.sampler.dataset),  # type: ignore[arg-type]
            "seed": self.sampler.seed,
            "batch_size": self.sampler.batch_size,
            "ranks": self.sampler.num_replicas,
            "grouped": self.sampler.lengths is not None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Check that the order is the one that `state` was saved with.

        Raises:
            UserError: If anything differs, naming it: the run could not continue with the same batches.
        """
        now = self.state_dict()
        changed = [
            f"{key} was {state[key]}, is {now[key]}" for key in now if state.get(key, now[key]) != now[key]
        ]
        if changed:
            raise UserError(
                f"the training data differ from those of the checkpoint: {'; '.join(changed)}. "
                "Resume with the configuration of the run, or start a new one."
            )
