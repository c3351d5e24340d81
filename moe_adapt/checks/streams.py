"""Checks that every stream passes, ours and yours."""

import numpy as np
import torch

from moe_adapt.streams import Task, TaskStream

__all__ = ["check_stream"]


def check_stream(stream: TaskStream) -> None:
    """Check a stream.

    It must show a learner one task at a time and nothing of later ones; number classes by first appearance;
    lose no class and use no training row twice; give the same samples whenever it is asked; and describe
    itself.

    Args:
        stream: The stream.

    Raises:
        AssertionError: If a property does not hold.

    >>> from moe_adapt.checks import gaussian_stream
    >>> check_stream(gaussian_stream())
    """
    assert len(stream) > 0, "a stream has tasks"
    seen: set[int] = set()
    for index in range(len(stream)):
        task = stream.task(index)
        _check_task(stream, task, index)
        if stream.train_labels is not None:
            new = sorted(set(task.classes) - seen)
            assert new == list(range(len(seen), len(seen) + len(new))), "classes are numbered as they appear"
            if stream.scenario in ("class", "task"):
                assert len(new) == len(task.classes), "tasks of a class-incremental stream are disjoint"
            seen |= set(task.classes)
        assert task.num_seen == len(seen), "num_seen counts the classes up to the task"
        examples, tasks = stream.test_until(index)
        assert len(examples) == len(tasks) > 0, "every test sample has a task"
        assert (np.diff(tasks) >= 0).all() and tasks.max() == index, "test samples are ordered by task"
        if examples.labels is not None:
            assert examples.labels.max() < task.num_seen, "no test sample has a class that is yet to come"
    rows = np.concatenate(stream.train_rows)
    assert len(np.unique(rows)) == len(rows), "no training row is in two tasks"
    if stream.train_labels is not None:
        assert seen == set(range(len(stream.class_names))), "no class is lost"
    said = stream.manifest()
    assert said["train_sizes"] == [len(each) for each in stream.train_rows], "the manifest gives the sizes"
    assert said["class_order"] == stream.class_names, "the manifest gives the order of the classes"
    assert said["fingerprint"] == stream.fingerprint(), "the fingerprint repeats itself"


def _check_task(stream: TaskStream, task: Task, index: int) -> None:
    assert task.index == index and len(task.train) > 0, "a task knows its place and has training samples"
    for value in vars(task).values():
        assert not isinstance(value, TaskStream), "a task does not lead to its stream"
    plain = task.train.plain()
    for position in {0, len(task.train) - 1}:
        one, two = plain[position], plain[position]
        assert one.keys() == two.keys() and "row" in one, "a sample is a dict with its row number"
        for key, value in one.items():
            same = torch.equal(value, two[key]) if isinstance(value, torch.Tensor) else value == two[key]
            assert same, f"{key!r} of a sample is the same whenever it is read"
    if task.train.labels is not None:
        assert set(task.train.labels.tolist()) == set(task.classes), "task.classes are those of its samples"
    positions = [0, len(task.train) - 1]
    batch = task.collate(plain.__getitems__(positions))
    for key, value in batch.items():
        assert len(value) == len(positions), f"{key!r} of a batch has one entry per sample"
