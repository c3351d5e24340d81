"""Tables from wherever they are: a file, a saved folder, the Hugging Face Hub, or memory.

A source is one string (or a list of rows):

* ``data/train.jsonl``: ``.json``, ``.jsonl``, ``.csv``, ``.tsv``, ``.parquet`` or ``.txt``, also compressed
  (``.csv.gz``); a text file is one row, the whole document in the column ``text``. `moe_adapt.data.readers`
  says how each is read: cells stay as they are written;
* ``data/saved`` or ``data/saved@test``: a folder written by ``Dataset.save_to_disk``, or of such files; a
  file belongs to a split if its name or folder has the word (train, validation or dev, test);
* a list of these, each by itself or as ``{file: ..., weight: 2}`` (`moe_adapt.data.mixtures`);
* ``ag_news``, ``glue:sst2@train[:10%]``: name, configuration and split of a data set on the Hub.

Without ``@split`` the split is the one asked for (train, validation or test).
"""

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from datasets import Dataset, DatasetDict, concatenate_datasets, load_dataset, load_from_disk
from datasets.exceptions import DatasetsError

from moe_adapt.data.mixtures import mix, parts_of
from moe_adapt.data.readers import READERS, read_rows
from moe_adapt.data.table import Table
from moe_adapt.errors import UserError, did_you_mean
from moe_adapt.reading import foreign
from moe_adapt.textfiles import reader_suffix

__all__ = [
    "SourceOption",
    "TableSource",
    "checked_texts",
    "describe",
    "is_saved_table",
    "load_table",
    "require_columns",
    "texts_of",
]

#: A file, folder or name on the Hub (see the module's text), rows in memory, or a data set.
TableSource: TypeAlias = str | list[dict[str, Any]] | Table | Dataset

#: A source as an option: a string, rows, or an object (a `Dataset`, say). Objects are Any because
#: jsonargparse takes a path for the configuration file of a class that it sees here, and reads the rows into
#: the configuration.
SourceOption: TypeAlias = str | list[dict[str, Any]] | Any

#: Files beside the data that describe it.
_NO_DATA = {"dataset_info.json", "dataset_infos.json", "requirements.txt", "LICENSE.txt", "README.txt"}
#: Split -> the words by which a file of a folder is known to belong to it.
_WORDS = {
    "train": {"train", "training"},
    "validation": {"validation", "valid", "val", "dev"},
    "test": {"test", "testing", "eval", "evaluation"},
}


def describe(source: TableSource) -> str:
    """Return how messages call a source: its own words, or what it is."""
    if isinstance(source, str):
        return repr(source)
    parts = parts_of(source)
    return "the rows given in memory" if parts is None else " + ".join(repr(part) for part, _ in parts)


def load_table(
    source: TableSource, split: str = "train", column_names: list[str] | None = None
) -> Table | Dataset:
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
    parts = parts_of(source)
    if parts is not None:
        tables = [load_table(part, split, column_names) for part, _ in parts]
        table = mix(tables, [weight for _, weight in parts])
    elif isinstance(source, str):
        table = _load_named(source, split, column_names)
    else:
        table = source if isinstance(source, Table | Dataset) else Table.from_rows(source)
    if len(table) == 0:
        raise UserError(f"the {split} split from {describe(source)} is empty: give it at least one row.")
    return table


def _load_named(source: str, split: str, column_names: list[str] | None) -> Table | Dataset:
    name, at, asked = source.rpartition("@")
    if Path(source).expanduser().exists() or not at or "/" in asked:
        name, asked = source, ""
    path = Path(name).expanduser()
    if path.is_dir():
        return _load_folder(path, asked or split)
    if path.is_file() or reader_suffix(path) in READERS or name.startswith((".", "/", "~")):
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


def _load_folder(path: Path, split: str) -> Table | Dataset:
    if is_saved_table(path):
        with foreign(path, "a saved data set"):
            table = load_from_disk(str(path.absolute()))
        if not isinstance(table, DatasetDict):
            return table
        if split not in table:
            raise UserError(
                f"{path} has no split {split!r}: it has {', '.join(table)}; choose with {path}@SPLIT."
            )
        return table[split]
    files = _files_of(path, split)
    if not files:
        raise UserError(
            f"the folder {path} is no saved data set and has no data files of a split {split!r}: expected "
            f"files such as {split}.jsonl ({', '.join(READERS)})."
        )
    parts = [read_rows(file) for file in files]
    if len(parts) == 1:
        return parts[0]
    for file, part in zip(files, parts, strict=True):
        if set(part.column_names) != set(parts[0].column_names):
            raise UserError(
                f"{file} has the columns {', '.join(part.column_names)}, but {files[0]} has "
                f"{', '.join(parts[0].column_names)}: files of one split have the same columns."
            )
    if all(isinstance(part, Dataset) for part in parts):
        return concatenate_datasets(parts)
    return Table({name: [v for part in parts for v in part[name]] for name in parts[0].column_names})


def _files_of(folder: Path, split: str) -> list[Path]:
    """Return the data files of a split; all files are of train if none names a split."""
    found: dict[str, list[Path]] = {}
    for file in sorted(folder.rglob("*")):
        inner = file.relative_to(folder)
        hidden = any(part.startswith((".", "_")) for part in inner.parts)
        if hidden or not file.is_file() or reader_suffix(file) not in READERS or file.name in _NO_DATA:
            continue
        found.setdefault(_split_of(inner), []).append(file)
    if not found.keys() - {""} and split == "train":
        return found.get("", [])
    return found.get(split, [])


def _split_of(path: Path) -> str:
    """Return the split that a file's name, or else the nearest folder's, has the word of; "" for none.

    >>> _split_of(Path("dev/part-1.jsonl")), _split_of(Path("test/rows.train.csv")), _split_of(Path("a.csv"))
    ('validation', 'train', '')
    """
    for part in reversed(path.parts):
        words = set(re.split(r"[^a-z]+", part.lower()))
        for name, marks in _WORDS.items():
            if words & marks:
                return name
    return ""


def _load_file(path: Path, column_names: list[str] | None) -> Table | Dataset:
    if not path.is_file():
        near = did_you_mean(
            path.name, [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        )
        raise UserError(f"there is no file {path}.{near}")
    return read_rows(path, column_names)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".") + "."


def require_columns(
    table: Table | Dataset,
    columns: Iterable[str],
    source: TableSource,
    options: Mapping[str, str] | None = None,
) -> None:
    """Check that a table has all `columns`.

    Args:
        table: The table.
        columns: Names that it must have.
        source: Where it came from.
        options: Option that names a column, by column; the message says it.

    Raises:
        UserError: If one is missing; the message lists those that exist.
    """
    wanted, there = list(columns), table.column_names
    missing = [column for column in wanted if column not in there]
    if not missing:
        return
    chosen = [options[column] for column in missing if options and column in options]
    rest = [name for name in there if name not in wanted]
    name = shlex.quote(rest[0]) if len(rest) == len(missing) == 1 else "NAME"
    hint = f" Choose {'one' if len(missing) == 1 else 'them'} with {f' {name} '.join(chosen)} {name}."
    if not set(wanted) & set(there) and _is_separated(source):
        hint += " If its first line is a row already, name the columns with --data.column_names."
    words = "column" if len(missing) == 1 else "columns"
    meant = "".join(did_you_mean(column, there) for column in missing)
    raise UserError(
        f"{describe(source)} has no {words} {' and '.join(map(repr, missing))}.{meant} "
        f"Its columns: {', '.join(there)}." + (hint if chosen else "")
    )


def _is_separated(source: TableSource) -> bool:
    return isinstance(source, str) and reader_suffix(Path(source)) in (".csv", ".tsv")


def texts_of(table: Table | Dataset, column: str, source: TableSource) -> list[str]:
    """Return a column of texts.

    Raises:
        UserError: If the column is missing, or a row holds anything but a text.
    """
    require_columns(table, [column], source)
    return list(checked_texts(table[column], column, source))


def checked_texts(values: Iterable[Any], column: str, source: TableSource) -> Iterator[str]:
    """Yield the values of a column of texts.

    Raises:
        UserError: If one is anything but a text; the message names the row.
    """
    for row, text in enumerate(values):
        if not isinstance(text, str):
            raise UserError(
                f"row {row} of {describe(source)} has {text!r} in column {column!r}: expected a text."
            )
        yield text
