"""Several sources as one table: ``[a.jsonl, {file: b.jsonl, weight: 2}]``.

A weight says how often a source's rows come in an epoch: 2 is twice, 0.5 half of them (always the same half,
drawn by a fixed seed). Columns that a source lacks are None in its rows.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from moe_adapt.data.table import Table
from moe_adapt.errors import UserError

__all__ = ["Parts", "mix", "parts_of", "repeats_rows"]

Parts = list[tuple[Any, float]]

#: Draws the rows of a weight that is no whole number.
SEED = 0


def parts_of(source: Any) -> Parts | None:
    """Return the sources of a mixture with their weights; None if `source` is no mixture.

    Raises:
        UserError: If a part is neither a source nor ``file`` and ``weight``.

    >>> parts_of(["a.jsonl", {"file": "b.jsonl", "weight": 2}])
    [('a.jsonl', 1.0), ('b.jsonl', 2.0)]
    """
    if not isinstance(source, list) or not source:
        return None
    if not any(isinstance(part, str) or _is_part(part) for part in source):
        return None
    found: Parts = []
    for part in source:
        if isinstance(part, str):
            found.append((part, 1.0))
        elif _is_part(part):
            found.append((part["file"], _weight(part.get("weight", 1))))
        else:
            raise UserError(
                f"a list of sources holds {part!r}: expected files, or {{file: ..., weight: ...}}."
            )
    return found


def _is_part(part: Any) -> bool:
    return isinstance(part, Mapping) and "file" in part and set(part) <= {"file", "weight"}


def _weight(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        raise UserError(f"the weight of a source is a number above 0, got {value!r}.")
    return float(value)


def repeats_rows(source: Any) -> bool:
    """Return whether rows of a source come more than once, so that none of them may be held out."""
    parts = parts_of(source)
    return parts is not None and any(weight > 1 for _, weight in parts)


def mix(tables: list[Any], weights: list[float]) -> Table:
    """Return the rows of several tables, as often as their weights say.

    Args:
        tables: The tables.
        weights: One weight each.
    """
    rows: list[dict[str, Any]] = []
    rng = np.random.default_rng(SEED)
    for table, weight in zip(tables, weights, strict=True):
        own = table.to_list()
        rows += own * int(weight)
        rest = round((weight - int(weight)) * len(own))
        rows += [own[place] for place in np.sort(rng.permutation(len(own))[:rest])]
    return Table.from_rows(rows)
