"""Run a learner over a stream: learn a task, test on everything seen, write a checkpoint, go on.

Every task starts from its own seed, and the checkpoint at its end holds all that the next one depends on. So
a run that was killed learns the task at hand again from its start, and ends with the numbers of an
uninterrupted one.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback

from moe_adapt import manifest
from moe_adapt.errors import UserError
from moe_adapt.evaluation.accuracy_matrix import AccuracyMatrix
from moe_adapt.learners import Learner
from moe_adapt.learners.instructions import InstructionLearner
from moe_adapt.processes import process, processes
from moe_adapt.streams import TaskStream
from moe_adapt.training.randomness import seed_generators
from moe_adapt.training.stream.attribution import Attribution, can_attribute
from moe_adapt.training.stream.checkpoint_schedule import CheckpointSchedule
from moe_adapt.training.stream.evaluate import Evaluation, evaluate
from moe_adapt.training.stream.features import cached_stream
from moe_adapt.training.stream.files import reserve, write_predictions, write_result
from moe_adapt.training.stream.processes import launch
from moe_adapt.training.stream.progress import StreamProgress
from moe_adapt.training.stream.result import StreamResult
from moe_adapt.training.stream.routing import routing_load
from moe_adapt.training.stream.schedule import scheduled_steps
from moe_adapt.training.stream.session import Session, derived_seed, quiet_lightning
from moe_adapt.training.stream.state import read_state, write_state
from moe_adapt.training.stream.verdicts import check_writes, count_verdicts

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
        folder: Where checkpoint, result and predictions go; None writes nothing.
        seed: Seed of orders, dropout and of what a learner draws.
        eval_at: When to test on everything seen: after ``all`` tasks, ``every=K``, ``geometric`` (1, 2, 4,
            ...) or ``final``.
        checkpoint_at: When to write checkpoint and result: ``auto`` keeps their cost near 1 % of the run, so
            that cheap tasks share one (`moe_adapt.training.stream.checkpoint_schedule`); or a schedule as
            in `eval_at`.
        eval_batch_size: Samples per forward in tests and in passes without gradients.
        cache_features: Compute the features of all samples once, for learners that leave their encoder alone.
        cache_dir: Where features are kept between runs; None keeps them in `folder`.
        num_workers: Worker processes per loader.
        trainer: Options of the Lightning trainers (``accelerator``, ``precision``, ``devices``, ...); they
            win over ours. Several devices run as DDP (`moe_adapt.training.stream.processes`).
        callbacks: Callbacks of the Lightning trainers.
        progress: Is told of tasks and steps.
        attribution: Measure, for learners of instructions with routed experts, what drift of routers and
            experts cost (`moe_adapt.training.stream.attribution`).
        verdicts: Let a language model also write its answers and judge them by their form, which tells a lost
            format from a lost task (`moe_adapt.training.stream.verdicts`).
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        seed: int = 0,
        eval_at: str = "all",
        checkpoint_at: str = "auto",
        eval_batch_size: int = 256,
        cache_features: bool = False,
        cache_dir: str | Path | None = None,
        num_workers: int = 0,
        trainer: dict[str, Any] | None = None,
        callbacks: list[Callback] | None = None,
        progress: StreamProgress | None = None,
        attribution: bool = True,
        verdicts: bool = False,
    ) -> None:
        if eval_batch_size < 1 or num_workers < 0:
            raise UserError(
                f"eval_batch_size must be at least 1 and num_workers at least 0, got {eval_batch_size} and "
                f"{num_workers}."
            )
        self.folder = None if folder is None else Path(folder)
        self.seed = seed
        self.eval_at = eval_at
        self.checkpoint_at = checkpoint_at
        self.eval_batch_size = eval_batch_size
        self.cache_features = cache_features
        self.cache_dir = self.folder if cache_dir is None else Path(cache_dir)
        self.num_workers = num_workers
        self.trainer = TRAINER | (trainer or {})
        self.callbacks = callbacks or []
        self.progress = progress or StreamProgress()
        self.attribution = attribution
        self.verdicts = verdicts
        self._attribution: Attribution | None = None
        self._checkpoints = CheckpointSchedule(checkpoint_at, 1)
        self._target: Path | None = None

    def run(
        self, learner: Learner, stream: TaskStream, resume: bool = False, overwrite: bool = False
    ) -> StreamResult:
        """Learn `stream` and return the result.

        Args:
            learner: The learner, fresh.
            stream: The stream.
            resume: Whether to go on from the folder's checkpoint.
            overwrite: Whether to replace a run that is in the folder.

        Raises:
            UserError: If there is nothing to resume, the checkpoint is of another learner or stream, the
                folder holds another run, or the learner and the runner's options contradict each other.
        """
        steps = scheduled_steps(self.eval_at, len(stream))
        self._checkpoints = CheckpointSchedule(self.checkpoint_at, len(stream))
        if self.verdicts:
            check_writes(learner)
        with quiet_lightning():
            device = launch(self.trainer, learner)
        self._target = self.folder
        if process():  # the first one writes and tells
            self._target, self.progress = None, StreamProgress()
        sizes = [len(rows) for rows in stream.test_rows]
        result = StreamResult(AccuracyMatrix(sizes), AccuracyMatrix(sizes))
        result.manifest = self._manifest_of(learner, stream)
        if resume:
            if self.folder is None:
                raise UserError("nothing to resume: the runner has no folder.")
            read_state(self.folder, learner, result)
            if result.done and self._target is not None:
                write_result(self._target, result)  # the run may have ended between checkpoint and result
        elif self._target is not None:
            reserve(self._target, overwrite)
        learner.to(device)
        self._attribution = self._attribution_of(learner, stream)
        self.progress.begin(len(stream), len(result.tasks))
        try:
            if self.cache_features:
                stream, result.manifest["features"] = cached_stream(
                    learner,
                    stream,
                    None if process() else self.cache_dir,
                    self.eval_batch_size,
                    self.num_workers,
                    self.progress.encoding,
                )
            for index in range(len(result.tasks), len(stream)):
                self._task(learner, stream, index, result, index in steps)
        finally:
            self.progress.end()
        return result

    def _attribution_of(self, learner: Learner, stream: TaskStream) -> Attribution | None:
        if process() or not (self.attribution and can_attribute(learner)):
            return None
        folder = None if self.folder is None else self.folder / "attribution"
        return Attribution(learner, stream, folder=folder)  # type: ignore[arg-type]

    def _manifest_of(self, learner: Learner, stream: TaskStream) -> dict[str, Any]:
        several = {"processes": processes()} if processes() > 1 else {}
        return {
            **manifest.collect(),
            **several,
            "started": manifest.now(),
            "seed": self.seed,
            "learner": learner.settings(),
            "uses_task_id": learner.needs_task_id,
            "stream": stream.manifest(),
            "eval_at": self.eval_at,
            "features": None,
        }

    def _task(
        self, learner: Learner, stream: TaskStream, index: int, result: StreamResult, test: bool
    ) -> None:
        name = stream.task_names[index]
        classes = len(stream.classes[index])
        self.progress.task_begins(index, f"{name} ({classes} classes)" if classes else name)
        joint = learner.trains_on == "all"
        if joint and index < len(stream) - 1:
            result.tasks.append({"task": index, "name": name, "learned": False})
            return
        start = time.perf_counter()
        task = stream.merged() if joint else stream.task(index)
        seed = derived_seed(self.seed, index)
        seed_generators(seed, seed, seed)
        callbacks = [*self.callbacks, self.progress]
        session = Session(
            learner, task, self.seed, self.eval_batch_size, self.num_workers, self.trainer, callbacks
        )
        begun = time.perf_counter()
        learner.begin_task(task)
        learner.learn_task(task, session)
        learned = time.perf_counter()
        trainable = sum(p.numel() for p in learner.parameters() if p.requires_grad)
        learner.eval()
        with torch.no_grad():
            learner.end_task(task, session)
        ended = time.perf_counter()
        found = evaluate(learner, stream, index, self.eval_batch_size, self.num_workers) if test else None
        tested = time.perf_counter()
        row: dict[str, Any] = {
            "task": index,
            "name": task.name,
            "learned": True,
            "classes": len(task.classes),
            "train_samples": len(task.train),
            "steps": session.steps,
            "trainable_parameters": trainable,
            "bytes": learner.memory_bytes(),
            "report": learner.report(),
        }
        if found is not None:
            self._record(stream, index, found, result)
            if self.verdicts and isinstance(learner, InstructionLearner):
                self._judge(learner, stream, index, result)
            row["forwards_per_sample"] = found.forwards / len(found.right)
        own = ended - begun - session.step_seconds - session.other_seconds
        working = session.step_seconds + own + (found.seconds if found else 0.0)
        row["seconds"] = {
            "learn": learned - start,
            "end": ended - learned,
            "evaluate": tested - ended,
            "steps": session.step_seconds,
            "own": own,
            "evaluate_model": found.seconds if found else 0.0,
        }
        result.tasks.append(row)
        if self._attribution is not None:
            self._attribution.after_task(index)
            if index == len(stream) - 1:
                result.attribution = self._attribution.finish(result.matrix.rates())
        if index == len(stream) - 1:
            result.routing = routing_load(learner, stream, self.eval_batch_size)
            result.manifest["ended"] = manifest.now()
            result.manifest["peak_memory_mb"] = round(manifest.peak_memory_mb(), 1)
        row["seconds"]["overhead"] = time.perf_counter() - start - working
        if self._target is not None and self._checkpoints.due(index):
            with self._checkpoints.writing():
                write_state(self._target, learner, result)
                write_result(self._target, result)
            row["seconds"]["overhead"] = time.perf_counter() - start - working
        accuracy = None if found is None else float(found.right.mean())
        self.progress.task_ends(index, task.name, accuracy, ended - start, tested - ended)

    def _judge(
        self, learner: InstructionLearner, stream: TaskStream, index: int, result: StreamResult
    ) -> None:
        for name, right in count_verdicts(learner, stream, index, self.eval_batch_size).items():
            matrix = AccuracyMatrix(result.matrix.total, result.verdicts.get(name))
            matrix.record(index, right)
            result.verdicts[name] = matrix.to_dict()["correct"]

    def _record(self, stream: TaskStream, index: int, found: Evaluation, result: StreamResult) -> None:
        result.matrix.record(index, found.correct)
        result.within.record(index, found.correct_within)
        if self._target is not None:
            write_predictions(self._target, index, found)
        examples, _ = stream.test_until(index)
        if index == len(stream) - 1 and examples.labels is not None:
            counts = stream.num_seen[-1]
            right = np.bincount(examples.labels[found.right], minlength=counts)
            total = np.bincount(examples.labels, minlength=counts)
            result.classes = {"correct": right.tolist(), "total": total.tolist()}
