"""Labelled rows from one or several opened sources, and test rows held out where there are none.

Several sources, given as a mapping from a name to a source, are the domains of a domain-incremental stream.
Classes are matched by name, across domains and between training and test.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from moe_adapt.data.image_sources import choose_classes
from moe_adapt.errors import UserError, did_you_mean

__all__ = ["Opened", "RowTable", "held_out", "per_class", "read_rows", "read_splits", "said"]


class Opened(NamedTuple):
    """One opened source.

    Attributes:
        content: Whatever reads its rows.
        labels: Class number of every row, [N].
        class_names: Names of the classes, [C].
    """

    content: Any
    labels: np.ndarray
    class_names: Sequence[str]


class RowTable(NamedTuple):
    """Rows of all sources of a split.

    Attributes:
        contents: What reads the rows, one per source.
        source: Number of the source of every row, [N].
        row: Row number within its source, [N].
        labels: Class number of every row, [N], in the numbering of `class_names`.
        domains: Name of the source of every row, [N]; None if there is one source without a name.
        class_names: Names of the classes, [C].
    """

    contents: list[Any]
    source: np.ndarray
    row: np.ndarray
    labels: np.ndarray
    domains: np.ndarray | None
    class_names: list[str]

    def subset(self, rows: np.ndarray) -> "RowTable":
        """Return the given rows, [chosen]."""
        domains = None if self.domains is None else self.domains[rows]
        return self._replace(
            source=self.source[rows], row=self.row[rows], labels=self.labels[rows], domains=domains
        )

    def only(self, classes: list[str]) -> "RowTable":
        """Return the rows of the given classes, numbered by their position there."""
        number = np.array([classes.index(name) if name in classes else -1 for name in self.class_names])
        table = self.subset(np.flatnonzero(number[self.labels] >= 0))
        return table._replace(labels=number[table.labels], class_names=list(classes))


def read_rows(
    sources: Any, opened: Callable[[Any], Opened], class_names: Sequence[str] | None = None
) -> RowTable:
    """Open the sources of a split.

    Args:
        sources: A source, or a mapping from the names of domains to sources.
        opened: Opens one source.
        class_names: Names of the classes there may be, in their order; None takes those of the first source.

    Raises:
        UserError: If a row has another class.
    """
    named = isinstance(sources, Mapping)
    parts = {name: opened(source) for name, source in (sources if named else {"": sources}).items()}
    names = list(next(iter(parts.values())).class_names if class_names is None else class_names)
    number = {name: index for index, name in enumerate(names)}
    labels = []
    for part in parts.values():
        new = np.array([number.get(name, -1) for name in part.class_names])[np.asarray(part.labels)]
        foreign = np.flatnonzero(new < 0)
        if len(foreign):
            name = part.class_names[int(np.asarray(part.labels)[foreign[0]])]
            raise UserError(
                f"row {foreign[0]} has the class {name!r}, which is not in the first training source."
                f"{did_you_mean(name, names)}"
            )
        labels.append(new)
    sizes = [len(each) for each in labels]
    return RowTable(
        [part.content for part in parts.values()],
        np.repeat(np.arange(len(sizes)), sizes),
        np.concatenate([np.arange(size) for size in sizes]),
        np.concatenate(labels),
        np.repeat(np.array(list(parts), dtype=object), sizes) if named else None,
        names,
    )


def read_splits(
    train: Any,
    test: Any,
    opened: Callable[[Any, str], Opened],
    classes: int | list[str] | None,
    test_fraction: float,
    train_per_class: int | None,
    test_per_class: int | None,
    seed: int,
    class_names: Sequence[str] | None = None,
) -> tuple[RowTable, RowTable]:
    """Open training and test sources; both tables number the chosen classes alike.

    Args:
        train: A source, or a mapping from the names of domains to sources.
        test: The same for testing; None holds out `test_fraction` of the training rows.
        opened: Opens one source; its second argument is ``train`` or ``test``.
        classes: Use these classes only: the first n, or those listed by name; None takes all.
        test_fraction: Share of every class held out if there are no test sources.
        train_per_class: Most training rows of a class; None takes all.
        test_per_class: Most test rows of a class; None takes all.
        seed: Decides which rows are held out and chosen.
        class_names: Names of all classes; None takes those of the first training source.
    """
    rows = read_rows(train, lambda source: opened(source, "train"), class_names)
    everything, chosen = rows.class_names, choose_classes(rows.class_names, classes)
    rows = rows.only(chosen)
    if test is None:
        rows, testing = held_out(rows, test_fraction, seed)
    else:
        testing = read_rows(test, lambda source: opened(source, "test"), everything).only(chosen)
    return per_class(rows, train_per_class, seed), per_class(testing, test_per_class, seed)


def classes_of_files(
    files: Mapping[str, Any], opened: Callable[[Any, str], Opened]
) -> tuple[dict[str, list[str]], list[str]]:
    """Return the classes of every task, each in the order of its first row, and all of them.

    Args:
        files: A source of each task by its name.
        opened: Opens one source; its second argument is ``train`` or ``test``.
    """
    tasks = {}
    for name, source in files.items():
        part = opened(source, "train")
        seen = dict.fromkeys(np.asarray(part.labels).tolist())
        tasks[name] = [part.class_names[label] for label in seen]
    return tasks, list(dict.fromkeys(label for classes in tasks.values() for label in classes))


def held_out(table: RowTable, fraction: float, seed: int) -> tuple[RowTable, RowTable]:
    """Split off a share of every class (and domain) for testing; return the rest and the share.

    Args:
        table: All rows.
        fraction: The share in (0, 1); at least one row of every class is taken and one is left.
        seed: Decides which.

    Raises:
        UserError: If the share is outside (0, 1), or a class has a single row.
    """
    if not 0 < fraction < 1:
        raise UserError(f"without test rows, test_fraction must be in (0, 1), got {fraction}.")
    rng = np.random.default_rng(seed)
    groups = table.labels if table.domains is None else _pairs(table.labels, table.domains)
    taken = []
    for group in np.unique(groups):
        rows = np.flatnonzero(groups == group)
        if len(rows) < 2:
            name = table.class_names[int(table.labels[rows[0]])]
            raise UserError(f"the class {name!r} has one row: none can be held out for testing; give test.")
        count = min(max(1, round(fraction * len(rows))), len(rows) - 1)
        taken.append(rng.permutation(rows)[:count])
    test = np.sort(np.concatenate(taken))
    rest = np.setdiff1d(np.arange(len(table.row)), test)
    return table.subset(rest), table.subset(test)


def per_class(table: RowTable, most: int | None, seed: int) -> RowTable:
    """Return at most `most` rows of every class, chosen by `seed`; all for None.

    Raises:
        UserError: If `most` is not positive.
    """
    if most is None:
        return table
    if most < 1:
        raise UserError(f"rows per class must be at least 1, got {most}.")
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(table.labels))
    order = order[np.argsort(table.labels[order], kind="stable")]
    labels = table.labels[order]
    rank = np.arange(len(labels)) - np.searchsorted(labels, labels)
    return table.subset(np.sort(order[rank < most]))


def said(source: Any) -> Any:
    """Return how a manifest names a source: by the last parts of its path, or its kind."""
    if isinstance(source, dict):
        return {name: said(each) for name, each in source.items()}
    if isinstance(source, str):
        return "/".join(Path(source).parts[-2:])
    return None if source is None else type(source).__name__


def _pairs(labels: np.ndarray, domains: np.ndarray) -> np.ndarray:
    _, index = np.unique(domains.astype(str), return_inverse=True)
    return labels + (labels.max() + 1) * index
