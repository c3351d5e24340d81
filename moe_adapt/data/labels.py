"""Class labels of all splits, to class numbers 0..C-1 with names: one table for training and test.

Every label has a text: ``1`` in JSON, ``"1"`` in JSON and ``1`` in CSV are the same class, ``007`` and ``7``
are two. The names are, in this order: those the user gives, those of the table's ``ClassLabel`` feature, the
labels of the training rows, whole numbers in their order and texts in that of the alphabet. Numbers 0..C-1
are thus classes of the same number; other numbers are codes, and name a class like any text.

If the user gives names and no label of any split is one of them, but all are numbers from 0 to C-1, they are
the classes' numbers. A label that no training row has is an error: never a row less, never another class.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset

from moe_adapt.data.table import Table
from moe_adapt.data.tables import TableSource, describe, require_columns
from moe_adapt.errors import UserError, did_you_mean

__all__ = [
    "LabelColumn",
    "LabelTable",
    "check_names",
    "encode_labels",
    "infer_class_names",
    "label_column",
    "label_text",
    "number_labels",
    "split_numbers",
    "written_names",
]

_WHOLE = re.compile(r"0|-?[1-9][0-9]*")


@dataclass(frozen=True)
class LabelColumn:
    """The labels of one split.

    Attributes:
        texts: The label of every row as a text, [rows].
        where: How messages call the source.
        names: Names of the classes that the source declares; None if it declares none.
    """

    texts: list[str]
    where: str
    names: list[str] | None = None


def label_column(table: Table | Dataset, column: str, source: TableSource) -> LabelColumn:
    """Return the labels of a table.

    Raises:
        UserError: If the column is missing, a row has no label or one that is neither a text nor a whole
            number, or some are texts and some are numbers.
    """
    require_columns(table, [column], source)
    feature = table.features.get(column)
    names = list(feature.names) if isinstance(feature, ClassLabel) else None
    return column_of(table[column], describe(source), names)


def column_of(
    values: Iterable[Any], where: str, names: list[str] | None = None, what: str = "label"
) -> LabelColumn:
    """Return labels as a column of texts.

    Args:
        values: Texts, whole numbers or truth values.
        where: How messages call the source.
        names: Names of the classes if the labels are their numbers.
        what: How messages call a value.

    Raises:
        UserError: As `label_column`.
    """
    texts: list[str] = []
    known: dict[str, str] = {}
    kinds: dict[str, int] = {}
    for row, value in enumerate(values):
        text, kind = _text(value, f"row {row} of {where}", what)
        if names is not None:
            if kind != "number" or not 0 <= value < len(names):
                raise UserError(
                    f"row {row} of {where} has the label {value}, outside 0..{len(names) - 1} "
                    "(a test split without labels cannot be scored)."
                )
            text = names[int(value)]
        elif not (kind == "text" and _WHOLE.fullmatch(text)):
            kinds.setdefault(kind, row)
        texts.append(known.setdefault(text, text))
    if len(kinds) > 1:
        shown = " and ".join(f"{texts[row]!r} is a {kind} (row {row})" for kind, row in kinds.items())
        raise UserError(f"the {what}s of {where} are mixed: {shown}; write all of them as texts.")
    return LabelColumn(texts, where, names)


def _text(value: Any, where: str, what: str = "label") -> tuple[str, str]:
    """Return a label as a text and its kind.

    >>> _text(7, "a.csv"), _text(True, "a.csv"), _text("007", "a.csv")
    (('7', 'number'), ('true', 'truth value'), ('007', 'text'))
    """
    if isinstance(value, str) and value.strip():
        return value, "text"
    if isinstance(value, bool | np.bool_):
        return str(bool(value)).lower(), "truth value"
    if isinstance(value, int | np.integer):
        return str(int(value)), "number"
    said = f"no {what}" if value is None or value == "" else f"the {what} {str(value)[:60]!r}"
    raise UserError(f"{where} has {said}: expected a text or a whole number, one per row.")


def label_text(value: Any, where: str) -> str:
    """Return a label as a text.

    Args:
        value: A text, a whole number or a truth value.
        where: How messages call the row.

    Raises:
        UserError: If it is anything else.
    """
    return _text(value, where)[0]


class LabelTable:
    """The classes, by number and by name, for all splits of one data set.

    Args:
        columns: The labels of the splits, training rows first; without names their labels are the classes.
        class_names: Names of the classes in the order of their numbers; None takes those of the first column.

    Attributes:
        names: Names of the classes, [C].

    Raises:
        UserError: If a name is repeated, or there are fewer than two classes.

    >>> train = LabelColumn(["1", "3", "1"], "train.jsonl")
    >>> table = LabelTable([train])
    >>> table.names, table.encode(LabelColumn(["3", "1"], "test.csv")).tolist()
    (['1', '3'], [1, 0])
    """

    def __init__(self, columns: Sequence[LabelColumn], class_names: Sequence[str] | None = None) -> None:
        first = columns[0]
        self.names = list(map(str, class_names or first.names or _ordered(first.texts)))
        check_names(self.names, first.where)
        numbers = {str(number) for number in range(len(self.names))}
        texts = {text for column in columns if column.names is None for text in column.texts}
        #: Whether labels are the classes' numbers.
        self.by_number = bool(texts) and texts <= numbers and not texts & set(self.names)
        known = numbers if self.by_number else self.names
        self._number = {
            name: number for number, name in enumerate(sorted(known, key=int) if self.by_number else known)
        }
        if len(self.names) < 2:
            for column in columns:
                self.encode(column)
            raise UserError(
                f"{first.where} has a single class, {self.names[0]!r}: a classifier needs two or more; give "
                "rows of another class, or set class_names."
            )

    def encode(self, column: LabelColumn) -> np.ndarray:
        """Return the class number of every row, [rows] int64.

        Raises:
            UserError: If a row's label is none of the classes; the message names the row.
        """
        number = self._number
        if self.by_number and column.names is not None:
            number = {name: i for i, name in enumerate(self.names)}
        labels = np.array([number.get(text, -1) for text in column.texts], dtype=np.int64)
        unknown = np.flatnonzero(labels < 0)
        if len(unknown):
            text = column.texts[unknown[0]]
            shown = ", ".join(self.names[:10]) + (", ..." if len(self.names) > 10 else "")
            raise UserError(
                f"row {unknown[0]} of {column.where} has the label {text!r}, which is none of the "
                f"{len(self.names)} classes ({shown}).{did_you_mean(text, self.names)} Correct the row, "
                "add training rows of the class, or set class_names."
            )
        return labels


def check_names(names: Sequence[str], where: str) -> None:
    """Check that no two classes share a name.

    Raises:
        UserError: If two do; the message gives the name.
    """
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise UserError(
                f"two classes of {where} are called {name!r}: give each a name of its own, or their "
                "rows could "
                "not be told apart."
            )
        seen.add(name)


def _ordered(texts: Iterable[str]) -> list[str]:
    """Return the different labels, numbers in their order, texts in that of the alphabet."""
    found = set(texts)
    return sorted(found, key=int) if all(map(_WHOLE.fullmatch, found)) else sorted(found)


def number_labels(column: LabelColumn) -> tuple[np.ndarray, list[str]]:
    """Return the class number of every row [rows] of one source, and the names of its classes [C].

    >>> number_labels(LabelColumn(["10", "2"], "a.csv"))[1]
    ['2', '10']
    """
    names = list(column.names or _ordered(column.texts))
    number = {name: i for i, name in enumerate(names)}
    return np.array([number[text] for text in column.texts], dtype=np.int64), names


def written_names(names: Any, where: str) -> list[str]:
    """Return the names of classes in an array; bytes are UTF-8.

    Raises:
        UserError: If it is not [C] of texts or whole numbers.
    """
    array = np.asarray(names)
    if array.ndim != 1 or array.dtype.kind not in "USiu":
        raise UserError(
            f"the class names of {where} are {array.dtype} of the shape {list(array.shape)}: expected "
            "texts [C]."
        )
    return [
        name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name) for name in array.tolist()
    ]


def class_numbers(labels: Any, class_names: Sequence[str] | None, where: str) -> tuple[np.ndarray, list[str]]:
    """Return the class numbers [N] that an array holds, and the names of the classes [C].

    Args:
        labels: Class numbers, [N]; without names also texts, or codes that are not 0..C-1.
        class_names: Names of the classes; None takes the labels themselves.
        where: How messages call the source.

    Raises:
        UserError: If there is not one whole number (or text) per row, or one is outside 0..C-1.
    """
    array = _one_per_row(labels, where)
    if class_names is None:
        return number_labels(column_of(array.tolist(), where))
    names = list(map(str, class_names))
    if array.dtype.kind not in "iu":
        raise UserError(f"the labels of {where} are of the type {array.dtype}: expected whole numbers.")
    wrong = np.flatnonzero((array < 0) | (array >= len(names)))
    if len(wrong):
        raise UserError(
            f"row {wrong[0]} of {where} has the label {array[wrong[0]]}, outside 0..{len(names) - 1} for "
            f"{len(names)} classes."
        )
    return array.astype(np.int64), names


def split_numbers(
    splits: Sequence[Any], class_names: Sequence[str] | None, wheres: Sequence[str]
) -> tuple[list[np.ndarray], list[str]]:
    """Return the class numbers [N] of each split's array, and the names of the classes [C].

    Args:
        splits: As `class_numbers` takes them, training rows first.
        class_names: Names of the classes; None takes the labels of the training rows.
        wheres: How messages call the splits.

    Raises:
        UserError: As `class_numbers`, and if a label is none of the training rows'.
    """
    if class_names is not None:
        names = list(map(str, class_names))
        return [class_numbers(s, names, where)[0] for s, where in zip(splits, wheres, strict=True)], names
    columns = [
        column_of(_one_per_row(s, where).tolist(), where) for s, where in zip(splits, wheres, strict=True)
    ]
    table = LabelTable(columns)
    return [table.encode(column) for column in columns], table.names


def _one_per_row(labels: Any, where: str) -> np.ndarray:
    array = np.asarray(labels)
    if array.ndim != 1:
        raise UserError(
            f"the labels of {where} have the shape {list(array.shape)}: expected [N], one class per row."
        )
    if array.dtype.kind == "i" and (array < 0).any():
        row = int(np.argmax(array < 0))
        raise UserError(f"row {row} of {where} has the label {array[row]}: class numbers are from 0.")
    return array


def infer_class_names(table: Table | Dataset, column: str, source: TableSource) -> list[str]:
    """Return the class names that a table's label column implies, [C].

    Raises:
        UserError: If the column is missing or its values cannot be labels (`label_column`).

    >>> rows = [{"label": "no"}, {"label": "yes"}, {"label": "no"}]
    >>> infer_class_names(Table.from_rows(rows), "label", rows)
    ['no', 'yes']
    """
    found = label_column(table, column, source)
    return list(found.names or _ordered(found.texts))


def encode_labels(
    table: Table | Dataset, column: str, class_names: Sequence[str], source: TableSource
) -> np.ndarray:
    """Return the class number of every row of one table, [rows] int64.

    Raises:
        UserError: If a row's label is none of `class_names`; the message names the row.
    """
    found = label_column(table, column, source)
    return LabelTable([found], class_names).encode(found)
