"""Rows one after the other, from sources that need not fit in memory.

Files of JSON lines, CSV, TSV and parquet are read row by row, packed ones too; a data set of the Hub is
streamed; what else there is (`moe_adapt.data.tables`) is loaded and iterated.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet
from datasets import load_dataset
from datasets.exceptions import DatasetsError

from moe_adapt.data.readers import READERS
from moe_adapt.data.tables import load_table
from moe_adapt.errors import UserError
from moe_adapt.reading import foreign
from moe_adapt.textfiles import json_lines, reader_suffix, separated_rows

__all__ = ["stream_rows"]

#: Rows of a parquet file that are in memory at once.
BATCH = 1000


def stream_rows(
    source: Any, split: str, column_names: list[str] | None = None
) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of one source, one after the other.

    Args:
        source: A file, a folder, a name on the Hub, or rows.
        split: The split to take if the source names none.
        column_names: Names of the columns of CSV and TSV files that have no header line.

    Raises:
        UserError: If a row cannot be read; the message names the line.
    """
    path = Path(source).expanduser() if isinstance(source, str) else Path()
    suffix = reader_suffix(path)
    if isinstance(source, str) and path.is_file() and suffix in (".jsonl", ".csv", ".tsv"):
        if suffix == ".jsonl":
            yield from (row for _, row in json_lines(path))
        else:
            rows = separated_rows(path, column_names)
            names = next(rows, ())
            yield from (dict(zip(names, cells, strict=True)) for cells in rows)
    elif isinstance(source, str) and path.is_file() and path.suffix == ".parquet":
        with foreign(path, "a parquet file"), pyarrow.parquet.ParquetFile(path) as table:
            for batch in table.iter_batches(batch_size=BATCH):
                yield from batch.to_pylist()
    elif isinstance(source, str) and not path.exists() and suffix not in READERS and source[0] not in "./~":
        yield from _streamed(source, split)
    else:
        table = load_table(source, split, column_names)
        yield from (table[row] for row in range(len(table)))


def _streamed(source: str, split: str) -> Iterator[Mapping[str, Any]]:
    name, _, asked = source.partition("@")
    repository, _, configuration = name.partition(":")
    try:
        yield from load_dataset(repository, configuration or None, split=asked or split, streaming=True)
    except (DatasetsError, OSError, ValueError) as error:
        raise UserError(
            f"{name!r} is no file or folder here, and could not be streamed from the Hub (split "
            f"{asked or split!r}): {str(error).strip().splitlines()[0]}. Give a path, or "
            "NAME:CONFIGURATION@SPLIT."
        ) from error
