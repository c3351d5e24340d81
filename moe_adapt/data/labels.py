"""Class labels of a table: texts or numbers in a column, to class numbers 0..C-1 with names.

The names are, in this order: those the user gives, those of the table's ``ClassLabel`` feature, the sorted
texts of the training rows, or "0".."C-1" where C-1 is the largest number in the training rows.
"""

from collections.abc import Sequence

import numpy as np
from datasets import ClassLabel, Dataset

from moe_adapt.data.tables import TableSource, describe, require_columns
from moe_adapt.errors import UserError, did_you_mean

__all__ = ["encode_labels", "infer_class_names"]


def _values(table: Dataset, column: str, source: TableSource) -> list[str | int]:
    """Return the labels as texts, or as integers if they are plain numbers."""
    require_columns(table, [column], source)
    feature = table.features[column]
    names = feature.names if isinstance(feature, ClassLabel) else None
    values: list[str | int] = []
    for row, value in enumerate(table[column]):
        if not isinstance(value, str | int):
            raise UserError(
                f"row {row} of {describe(source)} has the label {value!r}: expected a text or a whole number."
            )
        if names is None:
            values.append(value)
        elif isinstance(value, int) and 0 <= value < len(names):
            values.append(names[value])
        else:
            raise UserError(
                f"row {row} of {describe(source)} has the label {value}, outside 0..{len(names) - 1} "
                "(a test split without labels cannot be scored)."
            )
    return values


def infer_class_names(table: Dataset, column: str, source: TableSource) -> list[str]:
    """Return the class names that a table's label column implies, [C].

    Raises:
        UserError: If the column is missing or its values are neither texts nor numbers from 0.

    >>> rows = [{"label": "no"}, {"label": "yes"}, {"label": "no"}]
    >>> infer_class_names(Dataset.from_list(rows), "label", rows)
    ['no', 'yes']
    """
    values = _values(table, column, source)
    feature = table.features[column]
    if isinstance(feature, ClassLabel):
        return list(feature.names)
    if isinstance(values[0], str):
        return sorted(set(map(str, values)))
    return [str(number) for number in range(max(map(int, values)) + 1)]


def encode_labels(table: Dataset, column: str, class_names: Sequence[str], source: TableSource) -> np.ndarray:
    """Return the class number of every row, [rows] int64.

    Raises:
        UserError: If a row's label is outside the range, or not one of `class_names`; the message names the
            row.
    """
    number = {name: i for i, name in enumerate(class_names)}
    labels = np.empty(len(table), dtype=np.int64)
    for row, value in enumerate(_values(table, column, source)):
        if isinstance(value, str):
            if value not in number:
                shown = ", ".join(class_names[:10]) + (", ..." if len(class_names) > 10 else "")
                raise UserError(
                    f"row {row} of {describe(source)} has the label {value!r}, which is none of the "
                    f"{len(class_names)} classes ({shown}).{did_you_mean(value, class_names)}"
                )
            labels[row] = number[value]
        elif 0 <= value < len(class_names):
            labels[row] = value
        else:
            raise UserError(
                f"row {row} of {describe(source)} has the label {value}, outside 0..{len(class_names) - 1} "
                f"for {len(class_names)} classes: correct the row, or set class_names."
            )
    return labels
