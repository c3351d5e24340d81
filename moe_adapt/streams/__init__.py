"""Task streams: tasks one after the other, with known boundaries."""

from moe_adapt.streams.arrays import ArrayStream
from moe_adapt.streams.base import Examples, Scenario, Task, TaskRecord, TaskStream
from moe_adapt.streams.collate import Batch, collate
from moe_adapt.streams.images import ImageStream
from moe_adapt.streams.splits import Labelled, class_order, incremental_stream, task_sizes
from moe_adapt.streams.texts import TextStream

__all__ = [
    "ArrayStream",
    "Batch",
    "Examples",
    "ImageStream",
    "Labelled",
    "Scenario",
    "Task",
    "TaskRecord",
    "TaskStream",
    "TextStream",
    "class_order",
    "collate",
    "incremental_stream",
    "task_sizes",
]
