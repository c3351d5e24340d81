"""What the data modules have in common: splits, seeded loaders, and a position that survives a restart.

The checkpoint holds (epoch, number of batches trained in it), taken from the trainer's own counters: batches
that worker processes have prefetched do not count. A resumed run gets exactly the batches that the
uninterrupted run would have got. Loaders draw their worker seeds from a generator of their own, so that
making an iterator does not move the global random state.
"""

from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader

from moe_adapt.data.mixtures import repeats_rows
from moe_adapt.errors import UserError
from moe_adapt.training.datamodules.rows import Rows, hold_out, stratified_rows
from moe_adapt.training.datamodules.sampler import ResumableLoader, SeededSampler

__all__ = ["Batch", "SeededDataModule"]

#: Named tensors; every batch of this package is one.
Batch = dict[str, torch.Tensor]

_SPLIT_OF_STAGE = {None: "train", "fit": "train", "validate": "validation", "test": "test", "predict": "test"}


class SeededDataModule(L.LightningDataModule):
    """Base of the data modules: splits of map-style rows, in a deterministic order that can be resumed.

    A subclass says how to `read` a source, `prepare` the rows of a split, and `collate` them.

    Args:
        sources: Where the rows of train, validation and test are; None for a split without rows.
        validation_fraction: Share of the training rows held out if validation has no source; 0 for none.
        batch_size: Rows per batch of one rank.
        max_train_rows: Train on so many rows only, chosen class by class; None takes all.
        group_by_length: Put rows of similar length into one batch.
        num_workers: Worker processes per loader; 0 loads in the main process.
        seed: Fixes the held-out rows, the chosen rows and the order of every epoch.

    Raises:
        UserError: If a number is outside its range.
    """

    def __init__(
        self,
        sources: dict[str, Any],
        validation_fraction: float,
        batch_size: int,
        max_train_rows: int | None,
        group_by_length: bool,
        num_workers: int,
        seed: int,
    ) -> None:
        super().__init__()
        limits = {"batch_size": (batch_size, 1), "num_workers": (num_workers, 0), "seed": (seed, 0)}
        if max_train_rows is not None:
            limits["max_train_rows"] = (max_train_rows, 1)
        for name, (value, least) in limits.items():
            if value < least:
                raise UserError(f"{name} must be at least {least}, got {value}.")
        if not 0 <= validation_fraction < 1:
            raise UserError(f"validation_fraction must be in [0, 1), got {validation_fraction}.")
        self.sources = sources
        self.validation_fraction = validation_fraction
        self.batch_size = batch_size
        self.max_train_rows = max_train_rows
        self.group_by_length = group_by_length
        self.num_workers = num_workers
        self.seed = seed
        self.splits: dict[str, Rows] = {}
        self.notes: list[str] = []
        self._resume: dict[str, Any] = {}
        self._training_order: dict[str, Any] | None = None

    def read(self, source: Any, split: str) -> Rows:
        """Return the rows of a source as they are."""
        raise NotImplementedError

    def prepare(self, rows: Rows, split: str) -> Rows:
        """Return the rows as `collate` takes them, after rows were held out."""
        return rows

    def collate(self, rows: list[Any]) -> Batch:
        """Return the batch of a list of rows."""
        raise NotImplementedError

    def first_example(self) -> str:
        """Return the first training row as the model gets it, what is learned in marks."""
        return ""

    def answering(self) -> dict[str, Any]:
        """Return how new rows are put to a model that was trained on these, as JSON types."""
        return {}

    def setup(self, stage: str | None = None) -> None:
        """Read the rows; calling it again reads nothing twice.

        Args:
            stage: ``fit``, ``validate``, ``test`` or ``predict`` (which takes the test rows).

        Raises:
            UserError: If there are no rows for that stage, or a source is not as it should be.
        """
        if "train" not in self.splits and self.sources["train"] is not None:
            self._setup_train()
        for split in ("validation", "test"):
            if split not in self.splits and self.sources[split] is not None:
                self.splits[split] = self.prepare(self.read(self.sources[split], split), split)
        needed = _SPLIT_OF_STAGE[stage]
        if needed not in self.splits:
            raise UserError(
                f"no {needed} rows: set `{needed}` of {type(self).__name__} (--data.{needed}) to a file, a "
                "folder or a data set."
            )

    def _setup_train(self) -> None:
        holds_out = self.sources["validation"] is None and self.validation_fraction > 0
        if holds_out and repeats_rows(self.sources["train"]):
            raise UserError(
                "a weight above 1 repeats rows, which must not be trained on and held out at once: give "
                "validation rows, or set validation_fraction to 0."
            )
        rows = self.read(self.sources["train"], "train")
        if holds_out:
            rows, held_out = hold_out(rows, self.validation_fraction, self.seed)
            self.splits["validation"] = self.prepare(held_out, "validation")
        if self.max_train_rows is not None:
            rows = rows.subset(stratified_rows(rows.strata, self.max_train_rows, self.seed))
        self.splits["train"] = self.prepare(rows, "train")

    def train_dataloader(self) -> DataLoader:
        """Return the shuffled training rows, starting where the checkpoint ended.

        Raises:
            UserError: If the run was resumed and the rows, seed, batch size or number of ranks changed.
        """
        rows = self.splits["train"]
        trainer = self.trainer
        epoch, first_batch = self._resume.get("epoch", 0), self._resume.get("batch", 0)
        if trainer is not None and trainer.current_epoch > epoch:
            epoch, first_batch = trainer.current_epoch, 0
        sampler = SeededSampler(
            rows,
            batch_size=self.batch_size,
            seed=self.seed,
            epoch=epoch,
            first_batch=first_batch,
            lengths=rows.lengths if self.group_by_length else None,
            num_replicas=trainer.world_size if trainer is not None else 1,
            rank=trainer.global_rank if trainer is not None else 0,
        )
        loader = ResumableLoader(rows, sampler=sampler, **self._loader_options())
        if self._resume:
            loader.load_state_dict(self._resume["order"])
        self._training_order = loader.state_dict()
        return loader

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        """Return the validation rows in their order; an empty list if there are none."""
        if "validation" not in self.splits:
            return []
        return DataLoader(self.splits["validation"], **self._loader_options())

    def test_dataloader(self) -> DataLoader:
        """Return the test rows in their order."""
        return DataLoader(self.splits["test"], **self._loader_options())

    def predict_dataloader(self) -> DataLoader:
        """Return the test rows in their order."""
        return self.test_dataloader()

    def _loader_options(self) -> dict[str, Any]:
        return {
            "batch_size": self.batch_size,
            "num_workers": self.num_workers,
            "collate_fn": self.collate,
            "pin_memory": torch.cuda.is_available(),
            "generator": torch.Generator().manual_seed(self.seed),
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the training data: epoch, batches trained in it, what fixes the order."""
        if self.trainer is None or self._training_order is None:
            return {}
        loop = self.trainer.fit_loop
        epoch = max(loop.epoch_progress.current.started - 1, 0)  # type: ignore[attr-defined]
        batch = loop.epoch_loop.batch_progress.current.processed  # type: ignore[attr-defined]
        if batch >= self.trainer.num_training_batches:
            epoch, batch = epoch + 1, 0
        return {"epoch": epoch, "batch": batch, "order": self._training_order}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Keep the position until the training loader is made."""
        self._resume = dict(state_dict)
