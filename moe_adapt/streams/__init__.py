"""Task streams: tasks one after the other, with known boundaries."""

from moe_adapt.streams.arrays import ArrayStream
from moe_adapt.streams.base import Examples, Scenario, Task, TaskRecord, TaskStream
from moe_adapt.streams.collate import Batch, collate
from moe_adapt.streams.images import ImageStream
from moe_adapt.streams.instruction_folders import folder_tasks
from moe_adapt.streams.instruction_sources import jsonl_tasks, olora_order, olora_task, read_instructions
from moe_adapt.streams.instruction_stream import InstructionStream
from moe_adapt.streams.instruction_variants import (
    conflicting_tasks,
    letter_answers,
    overlap_tasks,
    repeat_tasks,
)
from moe_adapt.streams.instructions import Instruction, InstructionTask, hold_out, instruction_stream
from moe_adapt.streams.splits import Labelled, class_order, incremental_stream, task_sizes
from moe_adapt.streams.texts import TextStream

__all__ = [
    "ArrayStream",
    "Batch",
    "Examples",
    "ImageStream",
    "Instruction",
    "InstructionStream",
    "InstructionTask",
    "Labelled",
    "Scenario",
    "Task",
    "TaskRecord",
    "TaskStream",
    "TextStream",
    "class_order",
    "collate",
    "conflicting_tasks",
    "folder_tasks",
    "hold_out",
    "incremental_stream",
    "instruction_stream",
    "jsonl_tasks",
    "letter_answers",
    "olora_order",
    "olora_task",
    "overlap_tasks",
    "read_instructions",
    "repeat_tasks",
    "task_sizes",
]
