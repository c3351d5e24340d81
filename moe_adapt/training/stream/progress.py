"""Progress of a stream run: a live display in a terminal, a line per task in a log file."""

import sys
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

__all__ = ["LiveProgress", "PlainProgress", "StreamProgress", "stream_progress"]


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class StreamProgress(Callback):
    """Hears of tasks and steps; this one says nothing.

    The time left assumes that learning takes the same for every task and that testing grows with the tasks
    seen.
    """

    def __init__(self) -> None:
        self.tasks = self.first = 0
        self._learn: list[float] = []
        self._test: list[tuple[int, float]] = []

    def begin(self, tasks: int, done: int) -> None:
        """A run of `tasks` tasks starts, `done` of which were learned before."""
        self.tasks, self.first = tasks, done

    def encoding(self, done: int, total: int) -> None:
        """`done` of `total` samples were encoded."""

    def task_begins(self, index: int, name: str) -> None:
        """Task `index` starts."""

    def task_ends(self, index: int, name: str, accuracy: float | None, learn: float, test: float) -> None:
        """Task `index` was learned in `learn` seconds and tested in `test`; `accuracy` is over all seen."""
        self._learn.append(learn)
        if accuracy is not None:
            self._test.append((index + 1, test))

    def end(self) -> None:
        """The run is over, or broke off."""

    def seconds_left(self, index: int) -> float:
        """Return how long the tasks after `index` will take, from the last ten."""
        learn = sum(self._learn[-10:]) / max(1, len(self._learn[-10:]))
        seen, test = (sum(column) for column in zip(*(self._test[-10:] or [(1, 0.0)]), strict=True))
        coming = range(index + 2, self.tasks + 1)
        return learn * len(coming) + test / seen * sum(coming) * len(self._test) / max(1, len(self._learn))


class PlainProgress(StreamProgress):
    """Print a line per task, but not more often than every `seconds`.

    Args:
        seconds: Least time between two lines; the last task always has one.
    """

    def __init__(self, seconds: float = 2.0) -> None:
        super().__init__()
        self.seconds = seconds
        self._printed = 0.0

    def encoding(self, done: int, total: int) -> None:
        """Say how many samples were encoded."""
        self._say(f"features {done}/{total}", done == total)

    def task_ends(self, index: int, name: str, accuracy: float | None, learn: float, test: float) -> None:
        """Say which task was learned, the accuracy so far and the time left."""
        super().task_ends(index, name, accuracy, learn, test)
        known = "" if accuracy is None else f"  accuracy {accuracy:.4f}"
        line = f"task {index + 1}/{self.tasks} {name}{known}  {learn + test:.1f} s"
        self._say(f"{line}  {_clock(self.seconds_left(index))} left", index + 1 == self.tasks)

    def _say(self, line: str, always: bool) -> None:
        if always or time.monotonic() - self._printed >= self.seconds:
            self._printed = time.monotonic()
            print(line, flush=True)


class LiveProgress(StreamProgress):
    """A bar of tasks with accuracy so far and time left, and a bar of steps within the task."""

    def __init__(self) -> None:
        super().__init__()
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=Console(),
        )
        self._whole = self._bars.add_task("tasks", total=None, note="")
        self._part = self._bars.add_task("steps", total=None, note="", visible=False)

    def begin(self, tasks: int, done: int) -> None:
        """Show the bar of tasks."""
        super().begin(tasks, done)
        self._bars.update(self._whole, total=tasks, completed=done)
        self._bars.start()

    def encoding(self, done: int, total: int) -> None:
        """Show how many samples were encoded."""
        self._bars.update(
            self._part, description="features", total=total, completed=done, visible=done < total
        )

    def task_begins(self, index: int, name: str) -> None:
        """Show the task's name."""
        self._bars.reset(self._part, description=f"steps of {name}", total=None, visible=False, note="")

    def task_ends(self, index: int, name: str, accuracy: float | None, learn: float, test: float) -> None:
        """Show the accuracy so far and the time left."""
        super().task_ends(index, name, accuracy, learn, test)
        known = "" if accuracy is None else f"accuracy so far {accuracy:.2%}, "
        note = f"{known}{_clock(self.seconds_left(index))} left"
        self._bars.update(self._whole, completed=index + 1, note=note)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Show the step within the fit."""
        total = int(trainer.num_training_batches * (trainer.max_epochs or 1))
        done = int(trainer.current_epoch * trainer.num_training_batches + batch_idx + 1)
        self._bars.update(self._part, total=total, completed=done, visible=True)

    def end(self) -> None:
        """Leave the display."""
        self._bars.stop()


def stream_progress() -> StreamProgress:
    """Return the live display in a terminal, else plain lines."""
    return LiveProgress() if sys.stdout.isatty() else PlainProgress()
