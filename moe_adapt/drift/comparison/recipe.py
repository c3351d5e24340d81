"""A recipe: which learners on which drift streams, with which seeds; read from YAML, checked before a run."""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from moe_adapt.drift.comparison.methods import METHODS
from moe_adapt.drift.streams.base import DriftStream
from moe_adapt.drift.streams.own import file_stream
from moe_adapt.drift.streams.real import REAL_STREAMS, SHIPPED, real_stream
from moe_adapt.drift.streams.suites import SUITES, synthetic_stream
from moe_adapt.errors import UserError, did_you_mean
from moe_adapt.reading import read_yaml

__all__ = ["Cell", "MethodSpec", "Recipe", "StreamSpec", "read_recipe"]


@dataclass(frozen=True)
class StreamSpec:
    """One stream of a recipe.

    Args:
        name: Name of a synthetic or a real stream, or any name for a file.
        file: File of the rows: CSV, TSV, JSON lines, Parquet or ARFF.
        label: Column of that file to predict; the last one if not given.
        nominal: Columns of that file that are nominal although their values are numbers.
        rows: Length; the published one (synthetic) or the whole (real) if not given.
        suite: Suite of a synthetic stream.
        seeds: Instead of the recipe's seeds; real streams have the same rows for all of them.
    """

    name: str
    rows: int | None = None
    suite: str = "arf"
    seeds: tuple[int, ...] | None = None
    file: str | None = None
    label: str | None = None
    nominal: tuple[str, ...] = ()

    @property
    def synthetic(self) -> bool:
        """Whether the rows come from a generator."""
        return self.file is None and any(self.name in names for names in SUITES.values())

    def build(self, seed: int) -> DriftStream:
        """Return the stream whose rows belong to `seed`."""
        if self.synthetic:
            options = {} if self.rows is None else {"n_rows": self.rows}
            return synthetic_stream(self.name, seed=seed, suite=self.suite, **options)
        if self.file is not None:
            return _own_stream(self)
        return real_stream(self.name, self.rows)


@lru_cache(maxsize=4)
def _own_stream(spec: StreamSpec) -> DriftStream:
    """Return the stream of a file, which is read once for all methods."""
    return file_stream(str(spec.file), spec.label, spec.rows, spec.nominal, spec.name)


@dataclass(frozen=True)
class MethodSpec:
    """One learner of a recipe.

    Args:
        name: What tables call it.
        kind: What it is: a key of `moe_adapt.drift.comparison.methods.METHODS`.
        options: Options of that kind.
    """

    name: str
    kind: str
    options: dict[str, Any] = field(default_factory=dict)

    def build(self, stream: DriftStream, seed: int) -> Any:
        """Return the untrained learner.

        Raises:
            UserError: If it does not take the options.
        """
        try:
            return METHODS[self.kind](stream, seed, **self.options)
        except TypeError as problem:
            raise UserError(f"the method {self.name!r} cannot be built: {problem}.") from problem


@dataclass(frozen=True)
class Cell:
    """One run: a method on a stream with a seed."""

    stream: StreamSpec
    method: MethodSpec
    seed: int

    def path(self, folder: Path) -> Path:
        """Return where its result is kept."""
        return folder / "cells" / self.stream.name / self.method.name / f"seed_{self.seed}.json"


@dataclass(frozen=True)
class Recipe:
    """A comparison.

    Args:
        streams: The streams.
        methods: The learners.
        seeds: Seeds of rows and learners; every learner sees the same rows.
        window: Rows of the sliding window.
        delay: Rows after which a label arrives.
        memory: Measure the size of the pickled models.
        title: Heading of the report.
    """

    streams: tuple[StreamSpec, ...]
    methods: tuple[MethodSpec, ...]
    seeds: tuple[int, ...] = (1, 2, 3)
    window: int = 1000
    delay: int = 0
    memory: bool = True
    title: str = "Drift streams"

    def cells(self) -> Iterator[Cell]:
        """Yield the runs, cheap to stop after any of them."""
        for stream in self.streams:
            for seed in stream.seeds or self.seeds:
                for method in self.methods:
                    yield Cell(stream, method, seed)

    def only(
        self,
        streams: tuple[str, ...] | None = None,
        methods: tuple[str, ...] | None = None,
        seeds: tuple[int, ...] | None = None,
    ) -> Iterator[Cell]:
        """Yield the runs that these names select; None selects all.

        Raises:
            UserError: If a name is not in the recipe.
        """
        for given, known, what in (
            (streams, [stream.name for stream in self.streams], "stream"),
            (methods, [method.name for method in self.methods], "method"),
        ):
            for name in given or ():
                if name not in known:
                    raise UserError(f"the recipe has no {what} {name!r}.{did_you_mean(name, known)}")
        for cell in self.cells():
            if (
                (streams is None or cell.stream.name in streams)
                and (methods is None or cell.method.name in methods)
                and (seeds is None or cell.seed in seeds)
            ):
                yield cell


def read_recipe(path: Path) -> Recipe:
    """Read and check a recipe.

    Raises:
        UserError: If the file is not YAML or does not describe a comparison.
    """
    content = read_yaml(path, "a recipe in YAML")
    if not isinstance(content, dict):
        raise UserError(f"{path} should hold streams and methods, but holds {content!r:.80}.")
    known = [entry.name for entry in fields(Recipe)]
    for key in content:
        if key not in known:
            raise UserError(
                f"{path}: unknown key {key!r}.{did_you_mean(str(key), known)} Keys: {', '.join(known)}."
            )
    for key in ("streams", "methods"):
        if not content.get(key):
            raise UserError(f"{path} names no {key}.")
    _check_numbers(path, content)
    content["streams"] = tuple(_stream(path, entry) for entry in content["streams"])
    content["methods"] = tuple(_method(path, entry) for entry in content["methods"])
    content["seeds"] = _seeds(path, content.get("seeds", Recipe.seeds))
    for what in ("streams", "methods"):
        names = [entry.name for entry in content[what]]
        if len(set(names)) < len(names):
            raise UserError(f"{path}: two {what} have the same name; give one another name.")
    return Recipe(**content)


def _check_numbers(path: Path, content: dict[str, Any]) -> None:
    for key, least in (("window", 1), ("delay", 0)):
        value = content.get(key, least)
        if not isinstance(value, int) or value < least:
            raise UserError(f"{path}: {key} is a whole number of {least} or more, got {value!r}.")


def _seeds(path: Path, value: Any) -> tuple[int, ...]:
    if not isinstance(value, (list, tuple)) or not value or not all(isinstance(s, int) for s in value):
        raise UserError(f"{path}: seeds is a list of whole numbers, got {value!r}.")
    return tuple(value)


def _stream(path: Path, entry: Any) -> StreamSpec:
    options = {"name": entry} if isinstance(entry, str) else dict(entry)
    known = [one.name for one in fields(StreamSpec)]
    for key in options:
        if key not in known:
            raise UserError(f"{path}: a stream has no {key!r}.{did_you_mean(key, known)}")
    if "name" not in options:
        raise UserError(f"{path}: the stream {entry!r} has no name.")
    names = {*SUITES["arf"], *REAL_STREAMS, *SHIPPED}
    if options.get("file") is not None:
        return _file_spec(path, options)
    for key in ("label", "nominal"):
        if key in options:
            raise UserError(f"{path}: {key!r} belongs to a stream with a 'file'.")
    if options["name"] not in names:
        name = str(options["name"])
        raise UserError(f"{path}: there is no stream {name!r}.{did_you_mean(name, names)}")
    if "seeds" in options:
        options["seeds"] = _seeds(path, options["seeds"])
    return StreamSpec(**options)


def _file_spec(path: Path, options: dict[str, Any]) -> StreamSpec:
    """Return the spec of a stream from a file; its path counts from the recipe's folder."""
    file, name = Path(str(options["file"])), str(options["name"])
    if "/" in name or name.startswith("."):
        raise UserError(f"{path}: the name {name!r} becomes a folder; use letters, digits, '_' and '-'.")
    nominal = options.get("nominal", ())
    if isinstance(nominal, str):
        raise UserError(f"{path}: nominal is a list of columns, got {nominal!r}.")
    options |= {
        "name": name,
        "file": str(file if file.is_absolute() else path.parent / file),
        "nominal": tuple(str(column) for column in nominal),
    }
    if "seeds" in options:
        options["seeds"] = _seeds(path, options["seeds"])
    return StreamSpec(**options)


def _method(path: Path, entry: Any) -> MethodSpec:
    options = {"name": entry} if isinstance(entry, str) else dict(entry)
    if "name" not in options:
        raise UserError(f"{path}: the method {entry!r} has no name.")
    name = str(options.pop("name"))
    kind = str(options.pop("kind", name))
    if kind not in METHODS:
        raise UserError(
            f"{path}: unknown method {kind!r}.{did_you_mean(kind, METHODS)} Known: {', '.join(METHODS)}."
        )
    if "/" in name or name.startswith("."):
        raise UserError(f"{path}: the name {name!r} becomes a folder; use letters, digits, '_' and '-'.")
    return MethodSpec(name, kind, options)
