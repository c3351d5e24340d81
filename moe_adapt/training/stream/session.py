"""What the runner does for a learner while a task is learned: fits with fresh trainers, and passes over data.

A Lightning trainer that has fitted once trains nothing the second time without saying so, hence a new one for
every fit, and a check that it took steps. Orders and dropout masks follow from (seed, task, fit, epoch,
batch) alone, so a task that was cut off by a kill is learned again in the same way.
"""

import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback

from moe_adapt.errors import UserError
from moe_adapt.learners import Learner
from moe_adapt.processes import process, processes
from moe_adapt.streams import Batch, Examples, Task
from moe_adapt.training.datamodules.sampler import ResumableLoader, SeededSampler
from moe_adapt.training.randomness import seed_batch
from moe_adapt.training.stream.evaluate import loader, move
from moe_adapt.training.stream.processes import make_trainer, prepare, share

__all__ = ["Session", "derived_seed", "quiet_lightning"]


def derived_seed(*words: int) -> int:
    """Return a seed that follows from `words`, such as (seed, task, fit).

    >>> derived_seed(0, 1) == derived_seed(0, 1) != derived_seed(0, 2)
    True
    """
    return int(np.random.SeedSequence(words).generate_state(1)[0])


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Hush what Lightning says about every trainer: hundreds of tasks would say it hundreds of times."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*(in eval mode|does not have many workers|GPU).*")
            warnings.filterwarnings("ignore", message=".*`logging_interval`|.*log_every_n_steps.*")
            yield
    finally:
        logger.setLevel(level)


class _SeedBatches(Callback):
    """Seed every training batch, and time the steps."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.seconds = 0.0
        self._start = 0.0

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        seed_batch(self.seed, trainer.global_rank, trainer.current_epoch, batch_idx)
        self._start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.seconds += time.perf_counter() - self._start


class Session:
    """One task being learned.

    Args:
        learner: The learner.
        task: The task.
        seed: Seed of the run.
        batch_size: Samples per batch of `batches`.
        num_workers: Worker processes per loader.
        trainer: Options of the trainers.
        callbacks: Callbacks of the trainers.

    Attributes:
        steps: Optimiser steps taken.
        step_seconds: Time spent in them.
        other_seconds: Time that went into trainers and loaders around the steps and the learner's own work.
    """

    def __init__(
        self,
        learner: Learner,
        task: Task,
        seed: int,
        batch_size: int,
        num_workers: int,
        trainer: dict[str, Any],
        callbacks: list[Callback],
    ) -> None:
        self.learner = learner
        self.task = task
        self.seed = seed
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.trainer = trainer
        self.callbacks = callbacks
        self.fits = 0
        self.steps = 0
        self.step_seconds = 0.0
        self.other_seconds = 0.0

    def fit(self, data: Examples | None = None, epochs: int | None = None) -> None:
        """Train with a fresh trainer: new optimiser, new schedule, a seed of its own.

        Args:
            data: The training samples; those of the task if not given.
            epochs: Passes over them; the learner's `epochs` if not given.

        Raises:
            UserError: If no step was taken.
        """
        begun = time.perf_counter()
        examples = self.task.train if data is None else data
        seed = derived_seed(self.seed, self.task.index, self.fits)
        self.fits += 1
        batch_size = self.learner.batch_size
        batches = ResumableLoader(
            examples,
            sampler=SeededSampler(
                examples, batch_size=batch_size, seed=seed, num_replicas=processes(), rank=process()
            ),
            batch_size=batch_size,
            collate_fn=self.task.collate,
            num_workers=self.num_workers,
            generator=torch.Generator().manual_seed(seed),
        )
        seeding = _SeedBatches(seed)
        with quiet_lightning():
            prepare(self.learner)
            trainer = make_trainer(
                self.trainer,
                max_epochs=self.learner.epochs if epochs is None else epochs,
                callbacks=[seeding, *self.callbacks],
            )
            trainer.fit(self.learner, train_dataloaders=batches)
        if trainer.interrupted:
            raise KeyboardInterrupt
        if trainer.global_step == 0:
            raise UserError(
                f"task {self.task.index} ({self.task.name!r}) was not trained: the trainer took no step."
            )
        share(self.learner, seed)
        self.steps += trainer.global_step
        self.step_seconds += seeding.seconds
        self.other_seconds += time.perf_counter() - begun - seeding.seconds

    def batches(self, data: Examples, batch_size: int | None = None) -> Iterator[Batch]:
        """Yield the samples in their order, without augmentation, on the learner's device.

        Args:
            data: The samples.
            batch_size: Samples per batch; the runner's evaluation batch size if not given.
        """
        device = self.learner.device
        size = batch_size or self.batch_size
        begun = time.perf_counter()
        for batch in loader(data.plain(), size, self.task.collate, self.num_workers):
            moved = move(batch, device)
            self.other_seconds += time.perf_counter() - begun
            yield moved
            begun = time.perf_counter()
