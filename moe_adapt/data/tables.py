"""Tables from wherever they are: a file, a saved folder, the Hugging Face Hub, or memory.

A source is one string (or a list of rows):

* ``data/train.jsonl``: ``.json``, ``.jsonl``, ``.csv``, ``.tsv``, ``.parquet`` or ``.txt``, also compressed
  (``.csv.gz``); a text file is one row, the whole document in the column ``text``;
* ``data/saved`` or ``data/saved@test``: a folder written by ``Dataset.save_to_disk``, or holding data files;
* ``ag_news``, ``glue:sst2@train[:10%]``: name, configuration and split of a data set on the Hub.

Without ``@split`` the split is the one asked for (train, validation or test).
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeAlias

from datasets import Dataset, DatasetDict, load_dataset, load_from_disk
from datasets.exceptions import DatasetsError

from moe_adapt.errors import UserError, did_you_mean

__all__ = [
    "SourceOption",
    "TableSource",
    "describe",
    "is_saved_table",
    "load_table",
    "require_columns",
    "texts_of",
]

#: A file, folder or name on the Hub (see the module's text), rows in memory, or a data set.
TableSource: TypeAlias = str | list[dict[str, Any]] | Dataset

#: A source as an option: a string, rows, or an object (a `Dataset`, say). Objects are Any because
#: jsonargparse takes a path for the configuration file of a class that it sees here, and reads the rows into
#: the configuration.
SourceOption: TypeAlias = str | list[dict[str, Any]] | Any

_READERS = {
    ".json": "json",
    ".jsonl": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".txt": "text",
}
_COMPRESSIONS = {".gz", ".bz2", ".xz", ".zip", ".zst"}


def describe(source: TableSource) -> str:
    """Return how messages call a source: its own words, or what it is."""
    return repr(source) if isinstance(source, str) else "the rows given in memory"


def load_table(source: TableSource, split: str = "train", column_names: list[str] | None = None) -> Dataset:
    """Return a source as a table with at least one row.

    Args:
        source: Where the rows are; see the module's text.
        split: The split to take if the source names none.
        column_names: Names of the columns of a CSV or TSV file without a header line.

    Raises:
        UserError: If there is no such file, folder, data set or split, the file type is unknown or its
            content unreadable, or there are no rows.

    >>> load_table([{"text": "a", "label": 0}]).column_names
    ['text', 'label']
    """
    if isinstance(source, str):
        table = _load_named(source, split, column_names)
    else:
        table = source if isinstance(source, Dataset) else Dataset.from_list(source)
    if len(table) == 0:
        raise UserError(f"the {split} split from {describe(source)} is empty: give it at least one row.")
    return table


def _load_named(source: str, split: str, column_names: list[str] | None) -> Dataset:
    name, at, asked = source.rpartition("@")
    if Path(source).expanduser().exists() or not at:
        name, asked = source, ""
    path = Path(name).expanduser()
    if path.is_dir():
        return _load_folder(path, asked or split)
    if path.is_file() or _reader_suffix(path) in _READERS or name.startswith((".", "/", "~")):
        return _load_file(path, column_names)
    hub_name, _, configuration = name.partition(":")
    try:
        return load_dataset(hub_name, configuration or None, split=asked or split)
    except (DatasetsError, OSError, ValueError) as error:
        raise UserError(
            f"{name!r} is no file or folder here, and could not be loaded from the Hub (split "
            f"{asked or split!r}): {_first_line(error)} Give a path, or NAME:CONFIGURATION@SPLIT."
        ) from error


def is_saved_table(path: Path) -> bool:
    """Return whether a folder was written by ``save_to_disk``."""
    return (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()


def _load_folder(path: Path, split: str) -> Dataset:
    if is_saved_table(path):
        table = load_from_disk(str(path))
        if not isinstance(table, DatasetDict):
            return table
        if split not in table:
            raise UserError(
                f"{path} has no split {split!r}: it has {', '.join(table)}; choose with {path}@SPLIT."
            )
        return table[split]
    try:
        return load_dataset(str(path), split=split)
    except (DatasetsError, OSError, ValueError) as error:
        raise UserError(
            f"the folder {path} is no saved data set and has no data files of a split {split!r}: "
            f"{_first_line(error)}"
        ) from error


def _reader_suffix(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in _COMPRESSIONS]
    return suffixes[-1] if suffixes else ""


def _load_file(path: Path, column_names: list[str] | None) -> Dataset:
    if not path.is_file():
        near = did_you_mean(
            path.name, [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        )
        raise UserError(f"there is no file {path}.{near}")
    suffix = _reader_suffix(path)
    if suffix not in _READERS:
        raise UserError(
            f"{path} has the unknown extension {suffix!r}: expected one of {', '.join(_READERS)}."
        )
    if path.stat().st_size == 0:
        raise UserError(f"the file {path} is empty.")
    options: dict[str, Any] = {}
    if _READERS[suffix] == "csv":
        # a text "NA" or "null" is a text, not a missing value
        options = {"sep": "\t" if suffix == ".tsv" else ",", "keep_default_na": False}
        if column_names is not None:
            options |= {"names": column_names, "header": None}
    elif _READERS[suffix] == "text":
        options = {"sample_by": "document"}
    try:
        return load_dataset(_READERS[suffix], data_files=str(path), split="train", **options)
    except (DatasetsError, OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read as {suffix[1:]}: {_first_line(error.__cause__ or error)}"
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".") + "."


def require_columns(table: Dataset, columns: Iterable[str], source: TableSource) -> None:
    """Check that a table has all `columns`.

    Raises:
        UserError: If one is missing; the message lists those that exist.
    """
    for column in columns:
        if column not in table.column_names:
            raise UserError(
                f"{describe(source)} has no column {column!r}.{did_you_mean(column, table.column_names)} "
                f"Its columns: {', '.join(table.column_names)}."
            )


def texts_of(table: Dataset, column: str, source: TableSource) -> list[str]:
    """Return a column of texts.

    Raises:
        UserError: If the column is missing, or a row holds anything but a text.
    """
    require_columns(table, [column], source)
    texts = list(table[column])
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise UserError(
                f"row {row} of {describe(source)} has {text!r} in column {column!r}: expected a text."
            )
    return texts
