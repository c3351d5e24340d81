"""Streams of feature vectors: arrays in memory, or an .npz file."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from moe_adapt.data.labels import check_names, split_numbers, written_names
from moe_adapt.errors import UserError
from moe_adapt.reading import foreign
from moe_adapt.streams.base import Scenario, TaskStream
from moe_adapt.streams.rows import said
from moe_adapt.streams.splits import Arrangement, Labelled, arrange

__all__ = ["ArrayStream", "Vectors"]

_SPLITS = ("train", "test")


class Vectors(Dataset):
    """Rows of a matrix, as ``features`` [d]; many can be read at once.

    Args:
        features: The matrix, [N, d].
    """

    def __init__(self, features: Tensor) -> None:
        self.features = features

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        return {"features": self.features[row]}

    def take(self, rows: np.ndarray) -> dict[str, Tensor]:
        """Return the rows of the given numbers as one batch."""
        return {"features": self.features.index_select(0, torch.from_numpy(rows))}


class ArrayStream(TaskStream):
    """Feature vectors with labels as a stream of tasks.

    Args:
        arrays: A mapping, or an .npz file, with ``x_train`` [N,d], ``y_train`` [N], ``x_test`` and
            ``y_test``; optionally ``names`` [C], and ``domain_train`` and ``domain_test`` [N].
        scenario: ``class``, ``task``, ``domain`` or ``blurry``.
        increment: New classes per task.
        first: Classes of the first task; 0 for as many as `increment`.
        order: Names of all classes in the order in which they come; None uses `order_seed`.
        order_seed: Seed of the classes' order, drawn as in the literature; None for that of the source.
        blur: Share of a class's training rows that is spread over all tasks, for ``blurry``.
        seed: Decides which rows are spread.

    Raises:
        UserError: If arrays are missing or do not fit each other, or the numbers make no stream.
    """

    def __init__(
        self,
        arrays: str | dict[str, Any],
        scenario: Scenario = "class",
        increment: int | None = None,
        first: int = 0,
        order: list[str] | None = None,
        order_seed: int | None = 1993,
        blur: float = 0.1,
        seed: int = 0,
    ) -> None:
        found = _read(arrays) if isinstance(arrays, str) else arrays
        where = repr(arrays) if isinstance(arrays, str) else "the mapping"
        lacking = [key for key in ("x_train", "y_train", "x_test", "y_test") if key not in found]
        if lacking:
            raise UserError(f"{where} lacks the arrays {', '.join(lacking)}; it has {', '.join(found)}.")
        names = written_names(found["names"], where) if "names" in found else None
        check_names(names or [], where)
        inputs = [_features(found[f"x_{split}"], f"x_{split} of {where}") for split in _SPLITS]
        labels, names = split_numbers(
            [found[f"y_{split}"] for split in _SPLITS], names, [f"y_{split} of {where}" for split in _SPLITS]
        )
        splits = []
        for split, x, y in zip(_SPLITS, inputs, labels, strict=True):
            domains = found.get(f"domain_{split}")
            if len(x) != len(y):
                raise UserError(
                    f"{where}: x_{split} has {len(x)} rows and y_{split} {len(y)}: expected [N, d] and [N]."
                )
            splits.append(Labelled(Vectors(x), y, None if domains is None else np.asarray(domains)))
        train, test = splits
        super().__init__(
            **arrange(
                train,
                test,
                names,
                Arrangement(scenario, increment, first, order, order_seed, blur, seed),
                origin={"kind": "arrays", "arrays": said(arrays) if isinstance(arrays, str) else "in memory"},
            )
        )


def _features(values: Any, where: str) -> Tensor:
    x = np.asarray(values)
    if x.ndim != 2 or x.dtype.kind not in "biuf":
        raise UserError(f"{where} is {x.dtype} of the shape {list(x.shape)}: expected numbers [N, d].")
    with np.errstate(over="ignore"):
        features = x.astype(np.float32)
    wrong = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if len(wrong):
        raise UserError(
            f"row {wrong[0]} of {where} has a value that is no finite float32: correct or drop it."
        )
    return torch.from_numpy(features)


def _read(path: str) -> dict[str, np.ndarray]:
    if not Path(path).is_file():
        raise UserError(f"there is no file {path}.")
    with foreign(path, "an .npz file of plain arrays"), np.load(path, allow_pickle=False) as file:
        return {key: file[key] for key in file.files}
