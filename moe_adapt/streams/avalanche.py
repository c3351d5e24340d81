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
    """Samples of a stream as (x, y)."""

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
    benchmark: Any, inputs: str = "pixel_values", scenario: Scenario | None = None
) -> TaskStream:
    """Return the stream of an Avalanche benchmark: one task per experience of its train and test streams.

    Args:
        benchmark: A benchmark whose experiences have data sets with targets.
        inputs: What a learner finds the input of a sample under.
        scenario: The kind of stream; None for ``class`` if no class comes twice, else ``blurry``.

    Raises:
        UserError: If a data set has no targets, or the experiences make no stream.
    """
    experiences = [list(benchmark.train_stream), list(benchmark.test_stream)]
    if len(experiences[0]) != len(experiences[1]):
        raise UserError(
            f"the benchmark has {len(experiences[0])} training and {len(experiences[1])} test experiences: "
            "expected as many."
        )
    datasets = [[experience.dataset for experience in stream] for stream in experiences]
    targets = [[_targets(dataset) for dataset in stream] for stream in datasets]
    rows = [_consecutive([len(each) for each in stream]) for stream in targets]
    train, test = (np.concatenate(stream) for stream in targets)
    found, compact = np.unique(train, return_inverse=True)
    unseen = np.setdiff1d(test, found)
    if len(unseen):
        raise UserError(f"the test experiences have the class {unseen[0]}, which no training one has.")
    number = number_by_appearance(compact, rows[0], np.arange(len(found)))
    sets = [set(each.tolist()) for each in targets[0]]
    disjoint = sum(map(len, sets)) == len(found)
    return TaskStream(
        scenario or ("class" if disjoint else "blurry"),
        _Inputs(ConcatDataset(datasets[0]), inputs),
        _Inputs(ConcatDataset(datasets[1]), inputs),
        rows[0],
        rows[1],
        number[compact],
        number[np.searchsorted(found, test)],
        [str(found[c]) for c in np.argsort(number)],
        [f"experience {experience.current_experience}" for experience in experiences[0]],
        origin={"kind": "avalanche"},
    )


def to_avalanche(stream: TaskStream, inputs: str = "pixel_values") -> Any:
    """Return a stream as an Avalanche benchmark with a classes timeline; class numbers are the stream's.

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

    def dataset(examples: Any) -> Any:
        pairs = _Pairs(examples, inputs)
        label = attributes.DataAttribute(pairs.targets, "targets", use_in_getitem=False)
        return data.AvalancheDataset([pairs], data_attributes=[label])

    everything, tasks = stream.test_until(len(stream) - 1)
    train = [dataset(stream.task(index).train) for index in range(len(stream))]
    test = [dataset(everything.subset(np.flatnonzero(tasks == index))) for index in range(len(stream))]
    benchmark = scenarios.benchmark_from_datasets(train=train, test=test)
    return scenarios.with_classes_timeline(benchmark)


def _targets(dataset: Any) -> np.ndarray:
    targets = getattr(dataset, "targets", None)
    if targets is None:
        raise UserError("an experience's data set has no targets: make it with as_classification_dataset.")
    return np.array([int(target) for target in targets])


def _consecutive(sizes: list[int]) -> list[np.ndarray]:
    ends = np.cumsum([0, *sizes])
    return [np.arange(start, end) for start, end in pairwise(ends)]
