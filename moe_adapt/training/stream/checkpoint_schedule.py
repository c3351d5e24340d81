"""When to write a checkpoint: often enough to lose little, seldom enough to cost little.

A checkpoint holds everything learned so far, so writing one after each of many short tasks takes longer than
the tasks. ``auto`` therefore writes once the time since the last one is `1 / share` times what that one took:
an expensive task is followed by a checkpoint, cheap tasks share one, and all of them together take about
`share` of the run. A kill loses the task at hand and the tasks since the last checkpoint; a resumed run
learns them again and ends with the same numbers whatever was lost.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from moe_adapt.training.stream.schedule import scheduled_steps

__all__ = ["CheckpointSchedule"]


class CheckpointSchedule:
    """Says after which tasks there is a checkpoint; the last task of a stream always has one.

    Args:
        schedule: ``auto``, or one of the schedules of `scheduled_steps`.
        tasks: Number of tasks.
        share: Most of the run's time that ``auto`` gives to checkpoints, about.

    Raises:
        UserError: If there is no such schedule.
    """

    def __init__(self, schedule: str, tasks: int, share: float = 0.01) -> None:
        self._steps = {tasks - 1} if schedule == "auto" else scheduled_steps(schedule, tasks, "checkpoint_at")
        self._auto = schedule == "auto"
        self._share = share
        self._cost = 0.0
        self._ended = time.perf_counter()

    def due(self, index: int) -> bool:
        """Return whether a checkpoint follows task `index`; ``auto`` begins with the first it is asked."""
        waited = time.perf_counter() - self._ended
        return index in self._steps or (self._auto and self._share * waited >= self._cost)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Time the write inside."""
        begun = time.perf_counter()
        yield
        self._ended = time.perf_counter()
        self._cost = self._ended - begun
