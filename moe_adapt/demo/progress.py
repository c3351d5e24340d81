"""One progress bar over all runs of the demo."""

from typing import Any

import lightning as L
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

__all__ = ["StepProgress"]


class StepProgress(L.Callback):
    """Advance a bar at every training step and every test batch.

    Args:
        console: Where to draw.
        total: Steps of all runs together.
    """

    def __init__(self, console: Console, total: int) -> None:
        self.bar = Progress(
            TextColumn("{task.description:<36}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self.task = self.bar.add_task("", total=total)

    def describe(self, text: str) -> None:
        """Say which run is under way."""
        self.bar.update(self.task, description=text)

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Count a training step."""
        self.bar.advance(self.task)

    def on_test_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Count a test batch."""
        self.bar.advance(self.task)
