"""Rows that do not fit in memory: written once to an Arrow file, mapped into memory, read one by one.

A row is kept as its JSON text, beside the length of that text: no type is inferred, as in memory
(`moe_adapt.data.table`). The file is named after the content of its source, so that a source that changed is
written anew. Rows are read one by one (`moe_adapt.data.streaming`).
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, overload

import numpy as np
import pyarrow
from datasets import Dataset, concatenate_datasets

from moe_adapt.data.mixtures import SEED, parts_of
from moe_adapt.data.streaming import stream_rows
from moe_adapt.data.tables import TableSource
from moe_adapt.errors import UserError
from moe_adapt.files import write_file

__all__ = ["DiskTable"]

#: Rows that are written at once.
CHUNK = 1000

SCHEMA = pyarrow.schema([("row", pyarrow.large_string()), ("length", pyarrow.int32())])


class DiskTable:
    """A table whose rows are on disk, used like `moe_adapt.data.table.Table`.

    Args:
        files: Arrow files that `written` made.
        index: Row numbers over all files, [rows]; None takes all of them once.
    """

    #: As a data set without declared features.
    features: Mapping[str, Any] = {}

    def __init__(self, files: list[Path], index: np.ndarray | None = None) -> None:
        self._data = concatenate_datasets([Dataset.from_file(str(file)) for file in files])
        self.index = np.arange(len(self._data), dtype=np.int64) if index is None else index
        names = [json.loads(file.with_suffix(".json").read_text(encoding="utf-8")) for file in files]
        self.column_names: list[str] = list(dict.fromkeys(name for part in names for name in part))

    @classmethod
    def of(cls, source: TableSource, split: str, folder: Path, column_names: list[str] | None) -> "DiskTable":
        """Write a source to disk, unless it is there already, and open it.

        Args:
            source: Where the rows are (`moe_adapt.data.tables`); several with weights are a mixture.
            split: The split to take if the source names none.
            folder: Where the Arrow files are kept.
            column_names: Names of the columns of CSV and TSV files that have no header line.

        Raises:
            UserError: If the source cannot be read, or has no rows.
        """
        parts = parts_of(source) or [(source, 1.0)]
        files = [written(part, split, folder, column_names) for part, _ in parts]
        weights = [weight for _, weight in parts]
        return cls(files, None if set(weights) == {1.0} else repeated(files, weights))

    def __len__(self) -> int:
        return len(self.index)

    @overload
    def __getitem__(self, key: str) -> Iterator[Any]: ...

    @overload
    def __getitem__(self, key: int) -> dict[str, Any]: ...

    def __getitem__(self, key: str | int) -> Any:
        if isinstance(key, str):
            return (row.get(key) for row in self._rows())
        row = json.loads(self._data[int(self.index[key])]["row"])
        return {name: row.get(name) for name in self.column_names}

    def _rows(self) -> Iterator[dict[str, Any]]:
        for start in range(0, len(self.index), CHUNK):
            yield from map(json.loads, self._data[self.index[start : start + CHUNK]]["row"])

    @property
    def lengths(self) -> np.ndarray:
        """Length of each row's text in characters, [rows]."""
        return self._data.data.column("length").to_numpy()[self.index]

    def subset(self, rows: np.ndarray) -> "DiskTable":
        """Return some rows, [chosen] numbers, as a table of their own; nothing is read."""
        chosen = object.__new__(DiskTable)
        chosen._data, chosen.column_names, chosen.index = self._data, self.column_names, self.index[rows]
        return chosen


def repeated(files: list[Path], weights: list[float]) -> np.ndarray:
    """Return row numbers over all files, each file's as often as its weight says, as in a mixture."""
    rng, start, found = np.random.default_rng(SEED), 0, []
    for file, weight in zip(files, weights, strict=True):
        rows = len(Dataset.from_file(str(file)))
        rest = np.sort(rng.permutation(rows)[: round((weight - int(weight)) * rows)])
        found += [start + np.tile(np.arange(rows), int(weight)), start + rest]
        start += rows
    return np.concatenate(found)


def written(source: Any, split: str, folder: Path, column_names: list[str] | None) -> Path:
    """Return the Arrow file of one source, written if it is not there yet."""
    file = folder / f"{_name(source, split, column_names)}.arrow"
    if file.is_file() and file.with_suffix(".json").is_file():
        return file
    folder.mkdir(parents=True, exist_ok=True)
    columns: dict[str, None] = {}

    def write(target: BinaryIO) -> None:
        count = 0
        with pyarrow.ipc.new_stream(target, SCHEMA) as stream:
            for rows in _chunks(stream_rows(source, split, column_names)):
                for row in rows:
                    columns.update(dict.fromkeys(row))
                texts = [json.dumps(row, ensure_ascii=False, default=str) for row in rows]
                arrays = [pyarrow.array(texts, SCHEMA.field("row").type), list(map(len, texts))]
                stream.write_batch(pyarrow.record_batch(arrays, schema=SCHEMA))
                count += len(rows)
        if not count:
            raise UserError(f"the {split} split from {source!r} is empty: give it at least one row.")

    write_file(file, write)
    write_file(file.with_suffix(".json"), json.dumps(list(columns)))
    return file


def _name(source: Any, split: str, column_names: list[str] | None) -> str:
    facts: list[Any] = [str(source), split, column_names]
    path = Path(str(source)).expanduser()
    files = [path] if path.is_file() else sorted(path.rglob("*")) if path.is_dir() else []
    for file in filter(Path.is_file, files):
        with file.open("rb") as content:
            facts.append((file.name, hashlib.file_digest(content, "sha256").hexdigest()))
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:20]


def _chunks(rows: Iterable[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    chunk: list[Mapping[str, Any]] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
