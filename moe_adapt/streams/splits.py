"""From labelled rows to a stream of tasks.

* **Class-incremental**: ``B0 Inc-N`` has N new classes per task, ``B-M Inc-N`` M first and then N each; what
  is left makes one last smaller task, so that no class is dropped.
* **Domain-incremental**: a task is one domain; classes come back.
* **Blurry**: class-incremental, but a share of every class's training rows is spread over all tasks.

The order of the classes is that of their first rows, a list, the given tasks, or
``numpy.random.RandomState(seed).permutation(C)``, with seed 1993 in most of the literature (iCaRL's
tradition; other generators give other orders under the same seed). Classes are then numbered by their first
appearance in the stream.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from moe_adapt.errors import UserError, did_you_mean
from moe_adapt.streams.base import Scenario, TaskStream
from moe_adapt.streams.collate import Batch, collate

__all__ = [
    "Arrangement",
    "Labelled",
    "Tasks",
    "arrange",
    "class_order",
    "first_seen",
    "incremental_stream",
    "number_by_appearance",
    "task_sizes",
]


#: Names of the classes of every task, in order; or the same by the task's name.
Tasks: TypeAlias = Sequence[Sequence[str]] | Mapping[str, Sequence[str]]


class Labelled(NamedTuple):
    """One split of a data set.

    Attributes:
        inputs: A map-style data set; an item is a dict of inputs.
        labels: Class number of every row in the source's numbering, [N].
        domains: Domain of every row, [N]; None without domains.
    """

    inputs: Any
    labels: np.ndarray
    domains: np.ndarray | None = None


@dataclass(frozen=True)
class Arrangement:
    """How rows become tasks.

    Args:
        scenario: ``class``, ``task``, ``domain`` or ``blurry``.
        increment: New classes per task; not for ``domain``.
        first: Classes of the first task; 0 for as many as `increment`.
        order: Names of all classes in the order in which they come (of the domains, for ``domain``); None
            uses `order_seed`.
        order_seed: Seed of the order of the classes; None for that of their first training rows.
        blur: Share of a class's training rows that is spread over all tasks, for ``blurry``.
        seed: Decides which rows are spread.
        tasks: Names of the classes of every task, or of every named task; instead of `increment`, `first`
            and `order`.
    """

    scenario: Scenario = "class"
    increment: int | None = None
    first: int = 0
    order: Sequence[str] | None = None
    order_seed: int | None = 1993
    blur: float = 0.1
    seed: int = 0
    tasks: Tasks | None = None

    def described(self) -> dict[str, Any]:
        """Return what a result says of it, as JSON types."""
        blurred = {"blur": self.blur, "seed": self.seed} if self.scenario == "blurry" else {}
        seed = None if self.order is not None else self.order_seed
        return {"increment": self.increment, "first": self.first, "order_seed": seed, **blurred}


def class_order(num_classes: int, seed: int | None) -> np.ndarray:
    """Return an order of the classes: that of the source for None, else the literature's for `seed`.

    >>> class_order(100, 1993)[:5].tolist()
    [68, 56, 78, 8, 23]
    """
    if seed is None:
        return np.arange(num_classes)
    return np.random.RandomState(seed).permutation(num_classes)


def first_seen(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Return the classes in the order of their first rows; classes without rows come last.

    >>> first_seen(np.array([2, 0, 2, 1]), 3).tolist()
    [2, 0, 1]
    """
    first = np.full(num_classes, len(labels))
    found, places = np.unique(labels, return_index=True)
    first[found] = places
    return np.argsort(first, kind="stable")


def _listed(tasks: Tasks, order: Sequence[str] | None) -> tuple[list[str] | None, list[str], list[int]]:
    """Return names of the tasks, the classes in their order, and how many each task has."""
    if order is not None:
        raise UserError("tasks says in which order classes come: leave out order.")
    parts = list(tasks.values()) if isinstance(tasks, Mapping) else list(tasks)
    empty = next((number for number, part in enumerate(parts) if not part), None)
    if not parts or empty is not None:
        raise UserError(f"every task needs a class; task {(empty or 0) + 1} of {len(parts)} has none.")
    classes = [str(name) for part in parts for name in part]
    twice = next((name for name in classes if classes.count(name) > 1), None)
    if twice is not None:
        raise UserError(
            f"the class {twice!r} is in two tasks: name it once, or set scenario to domain if "
            f"classes come back."
        )
    names = [str(name) for name in tasks] if isinstance(tasks, Mapping) else None
    return names, classes, [len(part) for part in parts]


def task_sizes(num_classes: int, increment: int, first: int = 0) -> list[int]:
    """Return how many classes each task has: `first` (if not 0), then `increment` each, then what is left.

    Raises:
        UserError: If the numbers do not make a stream.

    >>> task_sizes(10, 3)
    [3, 3, 3, 1]
    >>> task_sizes(10, 2, first=5)
    [5, 2, 2, 1]
    """
    if not 1 <= increment <= num_classes or not 0 <= first <= num_classes:
        raise UserError(
            f"increment must be from 1 to the number of classes and first from 0 to it, got increment "
            f"{increment} and first {first} for {num_classes} classes."
        )
    sizes = [first] if first else []
    while sum(sizes) < num_classes:
        sizes.append(min(increment, num_classes - sum(sizes)))
    return sizes


def incremental_stream(
    train: Labelled,
    test: Labelled,
    class_names: Sequence[str],
    collate: Callable[[Any], Batch] = collate,
    origin: dict[str, Any] | None = None,
    **arrangement: Any,
) -> TaskStream:
    """Return the stream of `arrange`; further arguments are those of `Arrangement`."""
    how = Arrangement(**arrangement)
    return TaskStream(**arrange(train, test, class_names, how, collate, origin))


def arrange(
    train: Labelled,
    test: Labelled,
    class_names: Sequence[str],
    how: Arrangement,
    collate: Callable[[Any], Batch] = collate,
    origin: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Split labelled rows into tasks; return the arguments of `TaskStream`.

    Args:
        train: The training rows of all tasks.
        test: The test rows of all tasks.
        class_names: Names of the classes, in the source's numbering.
        how: The arrangement.
        collate: Makes a batch of a list of samples.
        origin: Where the data comes from, as JSON types.

    Raises:
        UserError: If the numbers or names do not make a stream, or a class lacks training or test rows.
    """
    names = list(class_names)
    for what, split in (("training", train), ("test", test)):
        _check_labels(np.asarray(split.labels), names, what)
    labels = np.asarray(train.labels)
    task_names: list[str] | None
    if how.scenario == "domain":
        rows, task_names = _domains(train, test, how.order)
        sequence = first_seen(labels, len(names))
    elif how.scenario in ("class", "task", "blurry"):
        rows, task_names, sequence = _by_class(train, test, names, how)
    else:
        raise UserError(f"rows with labels make no stream of the scenario {how.scenario!r}.")
    number = number_by_appearance(labels, rows[0], sequence)
    return {
        "scenario": how.scenario,
        "train": train.inputs,
        "test": test.inputs,
        "train_rows": rows[0],
        "test_rows": rows[1],
        "train_labels": number[labels],
        "test_labels": number[np.asarray(test.labels)],
        "class_names": [names[c] for c in np.argsort(number)],
        "task_names": task_names,
        "collate": collate,
        "origin": {**(origin or {}), **how.described()},
    }


def _by_class(
    train: Labelled, test: Labelled, names: list[str], how: Arrangement
) -> tuple[list[list[np.ndarray]], list[str] | None, np.ndarray]:
    """Return the rows of every task of both splits, names of the tasks, and the classes in their order."""
    task_names: list[str] | None = None
    order, labels = how.order, np.asarray(train.labels)
    if how.tasks is not None:
        task_names, order, sizes = _listed(how.tasks, order)
    elif how.increment is None:
        raise UserError(
            f"a {how.scenario}-incremental stream needs the number of new classes: set increment, or tasks."
        )
    else:
        sizes = task_sizes(len(names), how.increment, how.first)
    if order is not None:
        sequence = _by_name(order, names, "class")
    elif how.order_seed is None:
        sequence = first_seen(labels, len(names))
    else:
        sequence = class_order(len(names), how.order_seed)
    task_of_class = np.empty(len(names), dtype=np.int64)
    task_of_class[sequence] = np.repeat(np.arange(len(sizes)), sizes)
    placed = task_of_class[labels]
    if how.scenario == "blurry":
        placed = _blurred(placed, len(sizes), how.blur, how.seed)
    tested = task_of_class[np.asarray(test.labels)]
    return [_rows_of(placed, len(sizes)), _rows_of(tested, len(sizes))], task_names, sequence


def _check_labels(labels: np.ndarray, names: list[str], what: str) -> None:
    if len(labels) == 0:
        raise UserError(f"there are no {what} rows.")
    if labels.min() < 0 or labels.max() >= len(names):
        wrong = int(np.flatnonzero((labels < 0) | (labels >= len(names)))[0])
        raise UserError(
            f"{what} row {wrong} has the label {labels[wrong]}, outside 0..{len(names) - 1} for {len(names)} "
            "classes."
        )
    missing = np.setdiff1d(np.arange(len(names)), labels)
    if len(missing):
        raise UserError(
            f"{len(missing)} of {len(names)} classes have no {what} row ({names[missing[0]]!r} first): leave "
            "them out of the classes, or add rows."
        )


def _by_name(order: Sequence[str], names: list[str], what: str) -> np.ndarray:
    for name in order:
        if name not in names:
            raise UserError(
                f"order names the {what} {name!r}, which does not exist.{did_you_mean(name, names)}"
            )
    if sorted(order) != sorted(names):
        raise UserError(f"order must name all {len(names)} {what} names once, but has {len(order)}.")
    number = {name: index for index, name in enumerate(names)}
    return np.array([number[name] for name in order])


def _domains(
    train: Labelled, test: Labelled, order: Sequence[str] | None
) -> tuple[list[list[np.ndarray]], list[str]]:
    if train.domains is None or test.domains is None:
        raise UserError("a domain-incremental stream needs the domain of every row, of training and test.")
    found = list(dict.fromkeys(train.domains.tolist()))
    extra = set(test.domains.tolist()) ^ set(found)
    if extra:
        raise UserError(f"the domain {sorted(extra)[0]!r} has no training rows or no test rows.")
    if order is not None:
        found = [found[index] for index in _by_name(list(order), [str(name) for name in found], "domain")]
    return [[np.flatnonzero(split.domains == name) for name in found] for split in (train, test)], [
        str(name) for name in found
    ]


def _blurred(tasks: np.ndarray, count: int, blur: float, seed: int) -> np.ndarray:
    if not 0 <= blur < 1:
        raise UserError(f"blur is a share of rows in [0, 1), got {blur}.")
    rng = np.random.default_rng(seed)
    moved = rng.random(len(tasks)) < blur
    return np.where(moved, rng.integers(count, size=len(tasks)), tasks)


def _rows_of(tasks: np.ndarray, count: int) -> list[np.ndarray]:
    return [np.flatnonzero(tasks == task) for task in range(count)]


def number_by_appearance(labels: np.ndarray, rows: list[np.ndarray], arrangement: np.ndarray) -> np.ndarray:
    """Return the new number of every class [C]: by first task, within a task by `arrangement`."""
    rank = np.argsort(arrangement)
    first = np.full(len(arrangement), len(rows))
    for task in range(len(rows) - 1, -1, -1):
        first[labels[rows[task]]] = task
    number = np.empty(len(arrangement), dtype=np.int64)
    number[np.lexsort((rank, first))] = np.arange(len(arrangement))
    return number
