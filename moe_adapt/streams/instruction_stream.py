"""Instruction streams by configuration: a folder, a kind of files, an order.

stream:
  class_path: InstructionStream
  init_args: {folder: data/olora_cl_benchmark, source: olora, order: 4, max_train: 500, max_test: 200}
"""

from typing import Literal

from moe_adapt.errors import UserError
from moe_adapt.streams.base import TaskStream
from moe_adapt.streams.instruction_folders import folder_tasks
from moe_adapt.streams.instruction_sources import jsonl_tasks, olora_order, olora_task
from moe_adapt.streams.instruction_variants import letter_answers, overlap_tasks
from moe_adapt.streams.instructions import instruction_stream
from moe_adapt.streams.rendered import rendered_tasks

__all__ = ["InstructionStream"]


class InstructionStream(TaskStream):
    """Tasks of prompts and answers.

    Args:
        source: What the tasks are: jsonl (``<task>_train.jsonl``, ``<task>_test.jsonl``), folders (data sets
            of labelled texts or multiple-choice questions, such as intents and ARC), olora (the O-LoRA
            benchmark) or rendered (pictures of shapes with questions, made on the fly; needs no folder).
        folder: Folder of the files.
        order: Names of the tasks in order; for olora also the number of a published order (1 to 6). None
            takes all that there are, except for olora.
        max_train: Most training instructions per task; None takes all.
        max_test: Most test instructions per task.
        overlap: Share of each later task's training set that comes from the first task.
        letters: Put choices into the prompt and take letters as answers.
        test_share: Share held out of tasks without a test set.
        most_labels: Most labels of a task of labelled texts; None takes all.
        seed: Fixes what is chosen.

    Raises:
        UserError: If source, folder and order do not go together, or the files are not as expected.
    """

    def __init__(
        self,
        source: Literal["jsonl", "folders", "olora", "rendered"],
        folder: str | None = None,
        order: list[str] | int | None = None,
        max_train: int | None = None,
        max_test: int | None = None,
        overlap: float = 0.0,
        letters: bool = False,
        test_share: float = 0.2,
        most_labels: int | None = None,
        seed: int = 0,
    ) -> None:
        if source != "rendered" and folder is None:
            raise UserError(f"instructions from {source} need a folder.")
        if isinstance(order, int) and source != "olora":
            raise UserError(f"an order by number is for olora; give the names of the {source} tasks.")
        if source == "jsonl":
            tasks = jsonl_tasks(folder or "", order, test_share)  # type: ignore[arg-type]
        elif source == "folders":
            tasks = folder_tasks(folder or "", order, most_labels)  # type: ignore[arg-type]
        elif source == "rendered":
            tasks = rendered_tasks(order, max_train or 500, max_test or 100, seed)  # type: ignore[arg-type]
        elif isinstance(order, int):
            tasks = olora_order(folder or "", order, test_share)
        elif order is not None:
            tasks = [olora_task(folder or "", name, test_share) for name in order]
        else:
            raise UserError("olora needs an order: 1 to 6, or a list of tasks.")
        tasks = overlap_tasks(tasks, overlap, seed) if overlap else tasks
        tasks = [letter_answers(task) for task in tasks] if letters else tasks
        made = instruction_stream(tasks, max_train, max_test, seed, {"source": source, "letters": letters})
        super().__init__(
            "instruction",
            made.train,
            made.test,
            made.train_rows,
            made.test_rows,
            task_names=made.task_names,
            origin=made.origin,
        )
