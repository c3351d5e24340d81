"""Progress that suits where it is shown: a rich bar in a terminal, plain lines in a log file."""

import sys
import time
from importlib.util import find_spec
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar

__all__ = ["PlainProgress", "progress_bar"]


def progress_bar(seconds: float = 30.0) -> ProgressBar:
    """Return Lightning's rich bar if there is a terminal and rich is installed, else `PlainProgress`."""
    if sys.stdout.isatty() and find_spec("rich") is not None:
        return RichProgressBar(leave=True)
    return PlainProgress(seconds)


class PlainProgress(ProgressBar):
    """Print one line now and then: epoch, step, speed, time left, metrics.

    Args:
        seconds: Least time between two lines within an epoch; the end of an epoch always has one.
    """

    def __init__(self, seconds: float = 30.0) -> None:
        super().__init__()
        self.seconds = seconds
        self._enabled = True
        self._started = self._printed = 0.0
        self._first_step = 0

    def disable(self) -> None:
        """Print nothing (Lightning calls this on all but the first process)."""
        self._enabled = False

    def enable(self) -> None:
        """Print."""
        self._enabled = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._started = self._printed = time.monotonic()
        self._first_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Print a line if it is time."""
        if time.monotonic() - self._printed >= self.seconds:
            self._print(trainer, pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print a line."""
        self._print(trainer, pl_module)

    def line(self, trainer: L.Trainer, pl_module: L.LightningModule, seconds: float) -> str:
        """Return the line to print, `seconds` after the start."""
        total = trainer.estimated_stepping_batches
        speed = (trainer.global_step - self._first_step) / max(seconds, 1e-9)
        parts = [f"epoch {trainer.current_epoch + 1}", f"step {trainer.global_step}", f"{speed:.2f} steps/s"]
        if total != float("inf"):
            parts[1] += f"/{int(total)}"
            left = max(0, int((total - trainer.global_step) / max(speed, 1e-9)))
            parts.append(f"{left // 60}:{left % 60:02d} left")
        metrics = self.get_metrics(trainer, pl_module)
        parts += [
            f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in metrics.items() if k != "v_num"
        ]
        return "  ".join(parts)

    def _print(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._printed = time.monotonic()
        if self._enabled:
            print(self.line(trainer, pl_module, self._printed - self._started), flush=True)
