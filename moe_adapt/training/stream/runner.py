"""Run a learner over a stream: learn a task, test on everything seen, write a checkpoint, go on.

Every task starts from its own seed, and the checkpoint at its end holds all that the next one depends on. So
a run that was killed learns the task at hand again from its start, and ends with the numbers of an
uninterrupted one.
"""

import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from moe_adapt.errors import UserError
from moe_adapt.evaluation.accuracy_matrix import AccuracyMatrix
from moe_adapt.learners import Learner
from moe_adapt.streams import TaskStream
from moe_adapt.training.stream.evaluate import evaluate
from moe_adapt.training.stream.result import StreamResult
from moe_adapt.training.stream.session import Session, derived_seed
from moe_adapt.training.stream.state import read_state, write_state

__all__ = ["StreamRunner"]

#: Options of every trainer that a caller may override.
TRAINER: dict[str, Any] = {
    "accelerator": "cpu",
    "devices": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}


class StreamRunner:
    """Learns a stream task by task and keeps the result.

    Args:
        folder: Where checkpoint and result go; None writes nothing.
        seed: Seed of orders, dropout and of what a learner draws.
        eval_batch_size: Samples per forward in evaluation and in passes without gradients.
        num_workers: Worker processes per loader.
        trainer: Options of the Lightning trainers; they win over ours.
        callbacks: Callbacks of the Lightning trainers.
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        seed: int = 0,
        eval_batch_size: int = 256,
        num_workers: int = 0,
        trainer: dict[str, Any] | None = None,
        callbacks: list[Callback] | None = None,
    ) -> None:
        self.folder = None if folder is None else Path(folder)
        self.seed = seed
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.trainer = TRAINER | (trainer or {})
        self.callbacks = callbacks or []

    def run(self, learner: Learner, stream: TaskStream, resume: bool = False) -> StreamResult:
        """Learn `stream` and return the result.

        Args:
            learner: The learner, fresh.
            stream: The stream.
            resume: Whether to go on from the folder's checkpoint.

        Raises:
            UserError: If there is nothing to resume, or the checkpoint is of another learner or stream.
        """
        result = StreamResult(
            AccuracyMatrix([len(rows) for rows in stream.test_rows]),
            AccuracyMatrix([len(rows) for rows in stream.test_rows]),
            manifest={"seed": self.seed, "learner": learner.settings(), "stream": stream.manifest()},
        )
        if resume:
            if self.folder is None:
                raise UserError("nothing to resume: the runner has no folder.")
            read_state(self.folder, learner, result)
        for index in range(len(result.tasks), len(stream)):
            self._task(learner, stream, index, result)
            if self.folder is not None:
                write_state(self.folder, learner, result)
        return result

    def _task(self, learner: Learner, stream: TaskStream, index: int, result: StreamResult) -> None:
        if learner.trains_on == "all":
            if index < len(stream) - 1:
                result.tasks.append({"task": index, "name": stream.task_names[index], "learned": False})
                return
            task = stream.merged()
        else:
            task = stream.task(index)
        L.seed_everything(derived_seed(self.seed, index), verbose=False)
        session = Session(
            learner,
            task,
            self.seed,
            self.eval_batch_size,
            self.num_workers,
            self.trainer,
            self.callbacks,
        )
        clock = [time.perf_counter()]
        learner.begin_task(task)
        learner.learn_task(task, session)
        clock.append(time.perf_counter())
        learner.eval()
        with torch.no_grad():
            learner.end_task(task, session)
        clock.append(time.perf_counter())
        found = evaluate(learner, stream, index, self.eval_batch_size, self.num_workers)
        clock.append(time.perf_counter())
        result.matrix.record(index, found.correct)
        result.within.record(index, found.correct_within)
        learn, end, test = (b - a for a, b in pairwise(clock))
        result.tasks.append(
            {
                "task": index,
                "name": task.name,
                "learned": True,
                "classes": len(task.classes),
                "train_samples": len(task.train),
                "steps": session.steps,
                "seconds": {
                    "learn": learn,
                    "steps": session.step_seconds,
                    "end": end,
                    "evaluate": test,
                },
            }
        )
