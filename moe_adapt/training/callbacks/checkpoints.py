"""The two checkpoints of a run: ``checkpoints/last.ckpt`` to go on from, ``checkpoints/best.ckpt`` to use.

The best is written before the last, and no last checkpoint is written between an optimiser step and the
validation that follows it. So a killed run goes on from before that validation and repeats it: no candidate
is lost. It takes the best score from ``best.ckpt`` itself: whenever the run was killed, and wherever its
folder was moved to, a worse state does not replace it.
"""

import warnings
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from moe_adapt.training.checkpoint import read_checkpoint

__all__ = ["BestCheckpoint", "LastCheckpoint"]


class _RunCheckpoint(ModelCheckpoint):
    """A checkpoint under one fixed name in the run's folder."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Find the run's folder."""
        if self.dirpath is None:
            self.dirpath = str((Path(trainer.default_root_dir) / "checkpoints").resolve())
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Checkpoint directory")  # that of the run that goes on
            super().setup(trainer, pl_module, stage)


class LastCheckpoint(_RunCheckpoint):
    """Keep the latest state: every so many optimiser steps and at the end of every epoch.

    Args:
        every_n_train_steps: How many steps a killed run loses at most.
        dirpath: Folder; None takes ``checkpoints`` in the trainer's ``default_root_dir``.
    """

    def __init__(self, every_n_train_steps: int = 200, dirpath: str | Path | None = None) -> None:
        super().__init__(
            dirpath=dirpath,
            filename="last",
            every_n_train_steps=every_n_train_steps,
            enable_version_counter=False,
        )
        self._postponed = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the state that the run goes on from as saved."""
        super().on_train_start(trainer, pl_module)
        self._last_global_step_saved = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if it is time, but after the next step if a validation comes first.

        After an epoch's last batch `on_train_epoch_end` saves.
        """
        loop, step, every = trainer.fit_loop, trainer.global_step, self._every_n_train_steps
        dry: Any = trainer.fast_dev_run  # type: ignore[attr-defined]
        if dry or every < 1 or step == self._last_global_step_saved:
            return
        if loop.epoch_loop.batch_progress.is_last_batch or (step % every and not self._postponed):
            return
        self._postponed = loop.epoch_loop._should_check_val_fx(loop._data_fetcher)  # type: ignore[arg-type]
        if self._postponed:
            self._last_global_step_saved = step
        else:
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))

    def _save_checkpoint(self, trainer: L.Trainer, filepath: str) -> None:
        """Save, after the metrics up to here: a killed run logs those that come after it again."""
        for logger in trainer.loggers:
            logger.save()
        super()._save_checkpoint(trainer, filepath)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the state between two epochs, after the best one, whichever callback comes first."""
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, BestCheckpoint):
                callback.on_train_epoch_end(trainer, pl_module)
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._postponed = False
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Do nothing: validation changes no state."""


class BestCheckpoint(_RunCheckpoint):
    """Keep the best state by a validation metric; a run that never validates has none.

    Args:
        monitor: The metric; None takes the module's own (`AdaptedModule.monitor`), whose mode then counts.
        mode: Whether it should be low or high.
        dirpath: Folder; None takes ``checkpoints`` in the trainer's ``default_root_dir``.
    """

    def __init__(
        self,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "min",
        dirpath: str | Path | None = None,
    ) -> None:
        super().__init__(
            dirpath=dirpath, filename="best", monitor=monitor, mode=mode, enable_version_counter=False
        )

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Take the module's metric if none was given."""
        if self.monitor is None:
            self.monitor, mode = getattr(pl_module, "monitor", ("val/loss", "min"))
            self.mode, self.kth_value = mode, torch.tensor(float("inf") if mode == "min" else float("-inf"))
        super().setup(trainer, pl_module, stage)

    def begin_with(self, trainer: L.Trainer, score: float) -> None:
        """Take the state before the first step as the first candidate; an equal later one replaces it.

        Args:
            trainer: The trainer.
            score: Value of the monitored metric.
        """
        away = torch.tensor(float("-inf") if self.mode == "max" else float("inf"))
        known = torch.nextafter(torch.tensor(score), away)
        candidates = {str(self.monitor): known, "epoch": torch.tensor(0), "step": torch.tensor(0)}
        self._save_topk_checkpoint(trainer, candidates)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep nothing of the checkpoint: `on_fit_start` reads the score that belongs to the file."""

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take over the score of the file that is there, if the run goes on."""
        path = Path(str(self.dirpath)) / "best.ckpt"
        if trainer.ckpt_path is None or not path.is_file():
            return
        for state in read_checkpoint(path).get("callbacks", {}).values():
            score = state.get("best_model_score")
            if state.get("monitor") == self.monitor and score is not None:
                self.best_model_score = self.current_score = self.kth_value = score
                self.best_model_path = self.kth_best_model_path = str(path)
                self.best_k_models = {str(path): score}

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save if there was a validation."""
        if self.monitor in trainer.callback_metrics:
            super().on_train_epoch_end(trainer, pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save if the validation gave the metric."""
        if self.monitor in trainer.callback_metrics:
            super().on_validation_end(trainer, pl_module)
