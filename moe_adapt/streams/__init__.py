"""Task streams: tasks one after the other, with known boundaries."""

from moe_adapt.streams.base import Examples, Scenario, Task, TaskRecord, TaskStream
from moe_adapt.streams.collate import Batch, collate

__all__ = ["Batch", "Examples", "Scenario", "Task", "TaskRecord", "TaskStream", "collate"]
