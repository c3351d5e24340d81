"""Streams from Avalanche benchmarks, and Avalanche benchmarks from streams (extra ``avalanche``).

Only this file imports Avalanche, inside its functions: the import takes seconds and changes
``torch.utils.data.Dataset.__add__`` for the whole process. Tested with avalanche-lib 0.6.0, which is the
extra's pin; its own benchmarks drop classes silently if they do not divide evenly, a stream never does.

Reference: Avalanche, 2104.00405.
"""

from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import numpy as np
from torch.utils.data import ConcatDataset, Dataset

from moe_adapt.errors import UserError
from moe_adapt.streams.base import Scenario, TaskStream
from moe_adapt.streams.splits import number_by_appearance

__all__ = ["from_avalanche", "to_avalanche"]


class _Inputs(Dataset):
    """Items (x, y, ...) as dicts of the input alone."""

    def __init__(self, pairs: Any, name: str) -> None:
        self.pairs = pairs
        self.name = name

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {self.name: self.pairs[row][0]}


class _Pairs(Dataset):
    """Samples of a stream as (x, y), to which Avalanche adds the task label."""

    def __init__(self, examples: Any, name: str) -> None:
        self.examples = examples
        self.name = name
        self.targets = examples.labels.tolist()

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        sample = self.examples[index]
        return sample[self.name], sample["labels"]


def from_avalanche(
    benchmark: Any,
    inputs: str = "pixel_values",
    scenario: Scenario | None = None,
    classes_by_task: bool | None = None,
) -> TaskStream:
    """Return the stream of an Avalanche benchmark: one task per training experience.

    The samples of one complete test set, as NI benchmarks and CORe50 have it, count once each: those of a
    class are dealt out in turn to the tasks that have the class.

    Args:
        benchmark: A benchmark whose experiences have data sets with targets.
        inputs: What a learner finds the input of a sample under.
        scenario: The kind of stream; None for ``task`` with classes by task, else ``class`` if no class comes
            twice, else ``blurry``.
        classes_by_task: Whether a target under another task label is another class, called TASK/TARGET. None
            asks the benchmark whether it numbers the classes of every task from zero.

    Raises:
        UserError: If a data set has no targets, targets of several task labels overlap and nothing tells what
            that means, or the experiences make no stream.
    """
    experiences = [list(benchmark.train_stream), list(benchmark.test_stream)]
    complete = len(experiences[1]) == 1
    if len(experiences[0]) != len(experiences[1]) and not complete:
        raise UserError(
            f"the benchmark has {len(experiences[0])} training and {len(experiences[1])} test experiences: "
            "expected as many, or one complete test set."
        )
    datasets = [[experience.dataset for experience in stream] for stream in experiences]
    pairs = [[_targets(dataset) for dataset in stream] for stream in datasets]
    by_task = _by_task(benchmark, pairs[0]) if classes_by_task is None else classes_by_task
    targets = [[each if by_task else each * [0, 1] for each in stream] for stream in pairs]
    rows = [_consecutive([len(each) for each in stream]) for stream in targets]
    train, test = (np.concatenate(stream) for stream in targets)
    found, compact = np.unique(train, axis=0, return_inverse=True)
    compact = compact.reshape(-1)
    index = {tuple(pair): place for place, pair in enumerate(found.tolist())}
    names = [f"{task}/{target}" if by_task else str(target) for task, target in found.tolist()]
    unseen = [pair for pair in test.tolist() if tuple(pair) not in index]
    if unseen:
        raise UserError(f"the test experiences have the class {unseen[0][1]}, which no training one has.")
    test_classes = np.array([index[tuple(pair)] for pair in test.tolist()])
    number = number_by_appearance(compact, rows[0], np.arange(len(found)))
    sets = [set(compact[own].tolist()) for own in rows[0]]
    if complete:
        rows[1] = _dealt(test_classes, sets)
    kind: Scenario = "class" if sum(map(len, sets)) == len(found) else "blurry"
    return TaskStream(
        scenario or ("task" if by_task and kind == "class" else kind),
        _Inputs(ConcatDataset(datasets[0]), inputs),
        _Inputs(ConcatDataset(datasets[1]), inputs),
        rows[0],
        rows[1],
        number[compact],
        number[test_classes],
        [names[c] for c in np.argsort(number)],
        [f"experience {experience.current_experience}" for experience in experiences[0]],
        origin={"kind": "avalanche"},
    )


def to_avalanche(stream: TaskStream, inputs: str = "pixel_values") -> Any:
    """Return a stream as an Avalanche benchmark with task labels and a classes timeline.

    Samples are (x, y, task label); class numbers are the stream's. The task label is the task's number in a
    task-incremental stream and 0 in others.

    Args:
        stream: A stream of samples with classes.
        inputs: The key of the input that an experience's data set gives.

    Raises:
        UserError: If Avalanche is not installed, or the stream has no classes or no such input.
    """
    if find_spec("avalanche") is None:
        raise UserError("to_avalanche needs Avalanche: pip install 'moe-adapt[avalanche]'.")
    if stream.train_labels is None or stream.test_labels is None:
        raise UserError("Avalanche's classification benchmarks need classes; this stream has none.")
    sample = stream.task(0).train[0]
    if inputs not in sample:
        raise UserError(f"samples have no {inputs!r}; they have {', '.join(sample)}: set inputs.")
    scenarios: Any = import_module("avalanche.benchmarks.scenarios")
    data: Any = import_module("avalanche.benchmarks.utils")
    attributes: Any = import_module("avalanche.benchmarks.utils.data_attribute")

    def dataset(examples: Any, task: int) -> Any:
        pairs = _Pairs(examples, inputs)
        tasks = [task if stream.scenario == "task" else 0] * len(pairs)
        label = attributes.DataAttribute(pairs.targets, "targets", use_in_getitem=False)
        task_label = attributes.DataAttribute(tasks, "targets_task_labels", use_in_getitem=True)
        return data.TaskAwareClassificationDataset([pairs], data_attributes=[label, task_label])

    everything, tasks = stream.test_until(len(stream) - 1)
    count = range(len(stream))
    train = [dataset(stream.task(index).train, index) for index in count]
    test = [dataset(everything.subset(np.flatnonzero(tasks == index)), index) for index in count]
    benchmark = scenarios.benchmark_from_datasets(train=train, test=test)
    return scenarios.with_classes_timeline(scenarios.with_task_labels(benchmark))


def _targets(dataset: Any) -> np.ndarray:
    """Return task label and target of each sample, [N, 2]."""
    targets = getattr(dataset, "targets", None)
    if targets is None:
        raise UserError("an experience's data set has no targets: make it with as_classification_dataset.")
    tasks = getattr(dataset, "targets_task_labels", None)
    if tasks is None:
        tasks = [0] * len(targets)
    return np.array([[int(task), int(target)] for task, target in zip(tasks, targets, strict=True)])


def _by_task(benchmark: Any, train: list[np.ndarray]) -> bool:
    """Return whether targets of different task labels are different classes."""
    if getattr(benchmark, "class_ids_from_zero_in_each_exp", False):
        return True
    pairs = np.unique(np.concatenate(train), axis=0)
    target, uses = np.unique(pairs[:, 1], return_counts=True)
    if uses.max(initial=0) > 1:
        raise UserError(
            f"the target {target[uses > 1][0]} comes under several task labels: give classes_by_task=True "
            "if it is another class in each task, or False if it is the same one."
        )
    return False


def _dealt(classes: np.ndarray, of_task: list[set[int]]) -> list[np.ndarray]:
    """Return the rows of each task: those of a class go in turn to the tasks that have it."""
    task = np.empty(len(classes), dtype=np.int64)
    for found in np.unique(classes):
        own = np.flatnonzero(classes == found)
        having = [index for index, known in enumerate(of_task) if found in known]
        task[own] = np.array(having)[np.arange(len(own)) % len(having)]
    return [np.flatnonzero(task == index) for index in range(len(of_task))]


def _consecutive(sizes: list[int]) -> list[np.ndarray]:
    ends = np.cumsum([0, *sizes])
    return [np.arange(start, end) for start, end in pairwise(ends)]
