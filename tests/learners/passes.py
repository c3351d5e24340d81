"""Learners taken through tasks by hand, without a runner."""

from collections.abc import Iterable, Iterator
from typing import Any

from moe_adapt.learners import Learner
from moe_adapt.streams import Batch, Task, TaskStream

__all__ = ["Pass", "begin", "first", "whole"]


class Pass:
    """A run that only passes over data: all of it in one batch, unless a size is asked for."""

    def __init__(self, stream: TaskStream) -> None:
        self.stream = stream

    def batches(self, data: Any, batch_size: int | None = None) -> Iterator[Batch]:
        size = batch_size or len(data)
        for first in range(0, len(data), size):
            yield self.stream.collate([data[i] for i in range(first, min(first + size, len(data)))])


def whole(stream: TaskStream, index: int) -> Batch:
    """The training samples of a task as one batch."""
    return next(Pass(stream).batches(stream.task(index).train))


def begin(learner: Learner, tasks: Iterable[Task]) -> None:
    """Begin tasks one after the other; nothing is learned."""
    for task in tasks:
        learner.begin_task(task)


def first(stream: TaskStream, count: int) -> list[Task]:
    """The first tasks of a stream."""
    return [stream.task(index) for index in range(count)]
