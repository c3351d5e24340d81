"""Tasks one after the other: what a learner is given, and what it is tested on.

A `TaskStream` has ``T`` tasks with known boundaries. A learner gets one `Task` at a time: its training
samples and the numbers of the classes in them, never the stream, the test samples or a later task.

Classes are numbered in the order of their first appearance, so the classes seen after any task are
``0 .. num_seen - 1``, and a classifier's column ``c`` is class ``c``. `TaskStream.class_names` leads back to
the names. Tasks without classes (instructions) have ``num_seen == 0``; their learners say themselves what a
right answer is.

Samples are dicts. A classification sample has ``labels`` (an int) beside its inputs; every sample has
``row``, its number in the underlying data set.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from moe_adapt.errors import UserError
from moe_adapt.streams.collate import Batch, collate

__all__ = ["Examples", "Scenario", "Task", "TaskRecord", "TaskStream"]

#: ``class``: every task brings new classes. ``domain``: the same classes from another source. ``task``: as
#: class, but the task is known at test time. ``blurry``: classes come back. ``instruction``: no classes at
#: all.
Scenario = Literal["class", "domain", "task", "blurry", "instruction"]


class Examples(Dataset):
    """Chosen rows of a map-style data set of dicts, with their labels.

    The data set may offer three things that are used where they exist: ``take(rows) -> batch`` reads many
    rows at once (arrays), ``set_epoch(epoch)`` chooses the augmentation, and ``plain`` is the same data set
    without augmentation.

    Args:
        inputs: The data set; an item is a dict of inputs.
        rows: Row numbers in `inputs`, [N].
        labels: Class number of each chosen row, [N]; None for samples without classes.
    """

    def __init__(self, inputs: Any, rows: np.ndarray, labels: np.ndarray | None) -> None:
        self.inputs = inputs
        self.rows = np.asarray(rows, dtype=np.int64)
        self.labels = None if labels is None else np.asarray(labels, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = int(self.rows[index])
        sample = {**self.inputs[row], "row": row}
        return sample if self.labels is None else {**sample, "labels": int(self.labels[index])}

    def __getitems__(self, indices: list[int] | slice) -> list[dict[str, Any]] | Batch:
        """Return the samples, as one batch if the data set can read many rows at once."""
        if not hasattr(self.inputs, "take"):
            return [self[index] for index in np.arange(len(self))[indices].tolist()]
        rows = self.rows[indices]
        batch = {**self.inputs.take(rows), "row": torch.from_numpy(rows)}
        return batch if self.labels is None else {**batch, "labels": torch.from_numpy(self.labels[indices])}

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, of which augmentation is a function."""
        if hasattr(self.inputs, "set_epoch"):
            self.inputs.set_epoch(epoch)

    def plain(self) -> "Examples":
        """Return the same samples without augmentation."""
        return Examples(getattr(self.inputs, "plain", self.inputs), self.rows, self.labels)

    def subset(self, indices: np.ndarray) -> "Examples":
        """Return the samples of the given positions, [chosen]."""
        labels = None if self.labels is None else self.labels[indices]
        return Examples(self.inputs, self.rows[indices], labels)


@dataclass(frozen=True)
class TaskRecord:
    """What stays of a task: enough to grow a learner again as it grew then.

    Attributes:
        index: Position in the stream, from 0.
        name: What the task is called.
        classes: Numbers of the classes in its training samples, ascending.
        num_seen: Classes seen up to and including this task, ``C_seen``.
    """

    index: int
    name: str
    classes: tuple[int, ...]
    num_seen: int


@dataclass(frozen=True)
class Task(TaskRecord):
    """One task as a learner sees it.

    Attributes:
        train: The training samples.
        collate: Makes a batch of a list of samples.
    """

    train: Examples
    collate: Callable[[Any], Batch] = collate

    def record(self) -> TaskRecord:
        """Return what stays of the task."""
        return TaskRecord(self.index, self.name, self.classes, self.num_seen)


class TaskStream:
    """``T`` tasks, their test samples, and a description that fixes both.

    Args:
        scenario: The kind of stream.
        train: Training data of all tasks: a map-style data set whose items are dicts of inputs.
        test: Test data of all tasks.
        train_rows: Row numbers in `train` of each task, T arrays.
        test_rows: Row numbers in `test` of each task, T arrays. A class's test rows belong to the task that
            brings the class.
        train_labels: Class number of every row of `train`, numbered by first appearance; None without
            classes.
        test_labels: The same for `test`.
        class_names: Names of the classes in the order of their numbers.
        task_names: Names of the tasks; None numbers them.
        collate: Makes a batch of a list of samples.
        origin: Where the data comes from and how it was split, as JSON types; part of the manifest.

    Raises:
        UserError: If there is no task, a task has no training or test rows, tasks of a class-incremental
            stream share a class, or a test row's class was not seen in training by then.
    """

    def __init__(
        self,
        scenario: Scenario,
        train: Any,
        test: Any,
        train_rows: Sequence[np.ndarray],
        test_rows: Sequence[np.ndarray],
        train_labels: np.ndarray | None = None,
        test_labels: np.ndarray | None = None,
        class_names: Sequence[str] = (),
        task_names: Sequence[str] | None = None,
        collate: Callable[[Any], Batch] = collate,
        origin: dict[str, Any] | None = None,
    ) -> None:
        self.scenario: Scenario = scenario
        self.train, self.test = train, test
        self.train_rows = [np.asarray(rows, dtype=np.int64) for rows in train_rows]
        self.test_rows = [np.asarray(rows, dtype=np.int64) for rows in test_rows]
        self.train_labels = None if train_labels is None else np.asarray(train_labels, dtype=np.int64)
        self.test_labels = None if test_labels is None else np.asarray(test_labels, dtype=np.int64)
        self.class_names = list(class_names)
        self.task_names = list(task_names or (f"task {index}" for index in range(len(train_rows))))
        self.collate = collate
        self.origin = origin or {}
        self.classes: list[tuple[int, ...]] = [
            () if self.train_labels is None else tuple(np.unique(self.train_labels[rows]).tolist())
            for rows in self.train_rows
        ]
        self._check()
        largest = [max(classes, default=-1) + 1 for classes in self.classes]
        self.num_seen: list[int] = np.maximum.accumulate(largest).tolist()
        self._check_order()

    def __len__(self) -> int:
        return len(self.train_rows)

    def task(self, index: int) -> Task:
        """Return task `index` as a learner sees it."""
        rows = self.train_rows[index]
        return self._task(index, self.task_names[index], self.classes[index], rows)

    def merged(self) -> Task:
        """Return all tasks as one, for joint training: the last task with everybody's training samples."""
        classes = tuple(range(self.num_seen[-1]))
        rows = np.unique(np.concatenate(self.train_rows))
        return self._task(len(self) - 1, "all tasks", classes, rows)

    def _task(self, index: int, name: str, classes: tuple[int, ...], rows: np.ndarray) -> Task:
        examples = Examples(self.train, rows, _chosen(self.train_labels, rows))
        return Task(index, name, classes, self.num_seen[index], examples, self.collate)

    @cached_property
    def _tests(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The test rows of all tasks, the task of each, and how many there are up to each task."""
        sizes = [len(rows) for rows in self.test_rows]
        return np.concatenate(self.test_rows), np.repeat(np.arange(len(sizes)), sizes), np.cumsum(sizes)

    def test_until(self, index: int) -> tuple[Examples, np.ndarray]:
        """Return the test samples of tasks ``0 .. index``, ordered by task, and the task of each, [N]."""
        rows, tasks, ends = self._tests
        stop = ends[index]
        return Examples(self.test, rows[:stop], _chosen(self.test_labels, rows[:stop])), tasks[:stop]

    def test_classes(self, index: int) -> Tensor:
        """Return which class each test task up to `index` has, bool [index + 1, C_seen]."""
        within = torch.zeros(index + 1, self.num_seen[index], dtype=torch.bool)
        if self.test_labels is not None:
            rows, tasks, ends = self._tests
            stop = ends[index]
            within[torch.from_numpy(tasks[:stop]), torch.from_numpy(self.test_labels[rows[:stop]])] = True
        return within

    def manifest(self) -> dict[str, Any]:
        """Return what fixes the stream, as JSON types: origin, sizes, classes, their order."""
        return {
            "scenario": self.scenario,
            "tasks": len(self),
            "classes": self.num_seen[-1],
            **self.origin,
            "task_names": self.task_names,
            "classes_of_task": [list(classes) for classes in self.classes],
            "train_sizes": [len(rows) for rows in self.train_rows],
            "test_sizes": [len(rows) for rows in self.test_rows],
            "class_order": self.class_names,
            "fingerprint": self.fingerprint(),
        }

    def fingerprint(self) -> str:
        """Return a hash of rows, labels and origin: two streams with the same one are the same stream."""
        digest = hashlib.sha256(json.dumps([self.scenario, self.origin, self.class_names]).encode())
        for split in (self.train_rows, self.test_rows):
            for rows in split:
                digest.update(len(rows).to_bytes(8, "little") + rows.tobytes())
        for labels in (self.train_labels, self.test_labels):
            digest.update(b"" if labels is None else labels.tobytes())
        return digest.hexdigest()[:16]

    def _check(self) -> None:
        if not self.train_rows or len(self.train_rows) != len(self.test_rows):
            raise UserError(
                f"a stream has as many test sets as training sets, at least one: got {len(self.train_rows)} "
                f"and {len(self.test_rows)}."
            )
        for index, (train, test) in enumerate(zip(self.train_rows, self.test_rows, strict=True)):
            for what, rows in (("training", train), ("test", test)):
                if len(rows) == 0:
                    raise UserError(f"task {index} ({self.task_names[index]!r}) has no {what} samples.")

    def _check_order(self) -> None:
        seen: set[int] = set()
        for index, classes in enumerate(self.classes):
            again = seen & set(classes)
            if again and self.scenario in ("class", "task"):
                raise UserError(
                    f"task {index} has the class {self._name(min(again))} of an earlier task: a "
                    f"{self.scenario}-incremental stream has disjoint tasks; use scenario 'blurry'."
                )
            seen |= set(classes)
            if self.num_seen[index] != len(seen):
                missing = min(set(range(self.num_seen[index])) - seen)
                raise UserError(
                    f"class {self._name(missing)} has no training sample by task {index}, but a later number "
                    "has: classes are numbered in the order of their first appearance."
                )
            labels = _chosen(self.test_labels, self.test_rows[index])
            if labels is not None and (labels.max() >= self.num_seen[index] or labels.min() < 0):
                raise UserError(
                    f"a test sample of task {index} has class {self._name(int(labels.max()))}, which no "
                    "training sample of the task or an earlier one has."
                )

    def _name(self, label: int) -> str:
        return repr(self.class_names[label]) if 0 <= label < len(self.class_names) else str(label)


def _chosen(labels: np.ndarray | None, rows: np.ndarray) -> np.ndarray | None:
    return None if labels is None else labels[rows]
