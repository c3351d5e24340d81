"""Read a JSON, YAML, safetensors or checkpoint file: its content, or one sentence that names the file.

A file may be cut off, changed, of another kind, or made to do harm. Whatever goes wrong, the reader raises a
`UserError`. Nothing is unpickled but tensors and plain values. A YAML file whose anchors multiply or whose
nesting has no end is refused before anything is built of it.
"""

import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import yaml

from moe_adapt.errors import UserError

__all__ = ["foreign", "read_json", "read_tensors", "read_torch", "read_yaml", "tensor_shapes"]

T = TypeVar("T")

#: Most bytes of a YAML file, most levels, and most values once every anchor is written out.
YAML_LIMITS = (500_000, 60, 100_000)
#: Most levels of a JSON file; Python's own limit differs between versions.
JSON_LEVELS = 200
_AGAIN = "write or download it again"


@contextmanager
def foreign(path: str | Path, what: str, again: str = _AGAIN) -> Iterator[None]:
    """Turn whatever goes wrong inside, where a file from elsewhere is taken apart, into one sentence.

    Args:
        path: The file or folder, for the message.
        what: What it should be, such as "a routing trace".
        again: What to do about it.

    Raises:
        UserError: For every error inside; a `UserError` passes as it is.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines()
        reason = f"{type(error).__name__}: {lines[0][:200].rstrip('.')}" if lines else type(error).__name__
        raise UserError(f"{path} is damaged or not {what} ({reason}); {again}.") from error


def read_json(path: str | Path, what: str = "a JSON file", again: str = _AGAIN, kind: type = dict) -> Any:
    """Return the content of a JSON file.

    Args:
        path: The file.
        what: What it should be, for messages.
        again: What to do if it is not.
        kind: Type of the outermost value.

    Raises:
        UserError: If there is no such file, or it is not JSON of that kind.
    """
    with foreign(path, what, again):
        content = json.loads(_text(path, what))
        _check_levels(content)
        if not isinstance(content, kind):
            raise ValueError(f"it holds a {type(content).__name__}, expected a {kind.__name__}")
        return content


def read_yaml(path: str | Path, what: str = "a YAML file") -> Any:
    """Return the content of a YAML file; None for an empty one.

    Args:
        path: The file.
        what: What it should be, for messages.

    Raises:
        UserError: If there is no such file, it is not UTF-8, not YAML, or beyond `YAML_LIMITS`.
    """
    most_bytes, levels, values = YAML_LIMITS
    with foreign(path, what, "correct it"), _placed(path):
        text = _text(path, what)
        if len(text) > most_bytes:
            raise ValueError(f"it has {len(text):,} characters, at most {most_bytes:,} are read")
        _check_events(yaml.parse(text, Loader=_Loader), levels)
        node = yaml.compose(text, Loader=_Loader)
        if node is not None and _values(node, {}) > values:
            raise ValueError(f"its anchors stand for more than {values:,} values")
        return yaml.load(text, Loader=_Loader)


def read_tensors(path: str | Path, what: str = "a safetensors file", again: str = _AGAIN) -> dict[str, Any]:
    """Return the tensors of a safetensors file by name, on the CPU.

    Args:
        path: The file.
        what: What it should be, for messages.
        again: What to do if it is not.

    Raises:
        UserError: If there is no such file, or it is damaged or not of that kind.
    """
    return _safetensors(path, what, again, lambda file, name: file.get_tensor(name))[0]


def tensor_shapes(
    path: str | Path, what: str = "a safetensors file", again: str = _AGAIN
) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """Return the shapes of the tensors of a safetensors file by name, and its metadata; reads no tensor.

    Raises:
        UserError: If there is no such file, or it is damaged or not of that kind.
    """
    return _safetensors(path, what, again, lambda file, name: tuple(file.get_slice(name).get_shape()))


def read_torch(path: str | Path, what: str, again: str = "use another one") -> Any:
    """Return what `torch.save` wrote, on the CPU, unpickling nothing but tensors and plain values.

    The checksums inside the file are compared, which torch itself does not do.

    Args:
        path: The file.
        what: What it should be, for messages.
        again: What to do if it is not.

    Raises:
        UserError: If there is no such file, it is damaged, or holds anything else.
    """
    import torch

    _check_file(path, what)
    with foreign(path, what, again):
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
        if broken is not None:
            raise ValueError(f"the checksum of {broken} is wrong")
        return torch.load(path, map_location="cpu", weights_only=True)


def _safetensors(
    path: str | Path, what: str, again: str, take: Callable[[Any, str], T]
) -> tuple[dict[str, T], dict[str, str]]:
    from safetensors import safe_open

    _check_file(path, what)
    with foreign(path, what, again), safe_open(path, framework="pt") as file:
        return {name: take(file, name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118


def _check_file(path: str | Path, what: str) -> None:
    if not Path(path).is_file():
        raise UserError(f"there is no file {path}, which should be {what}.")


def _text(path: str | Path, what: str) -> str:
    _check_file(path, what)
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8, or {_AGAIN}."
        ) from error


def _check_levels(content: Any, level: int = 0) -> None:
    if level > JSON_LEVELS:
        raise ValueError(f"it is nested more than {JSON_LEVELS} levels deep")
    if isinstance(content, Mapping):
        content = content.values()
    elif not isinstance(content, list):
        return
    for item in content:
        if isinstance(item, dict | list):
            _check_levels(item, level + 1)


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Yaml's safe loader, which also says where a date or number stands that is none."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, OverflowError) as error:
            raise yaml.MarkedYAMLError(problem=str(error), problem_mark=node.start_mark) from error


@contextmanager
def _placed(path: str | Path) -> Iterator[None]:
    """Name the line where a YAML file is wrong."""
    try:
        yield
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
        reason = error.problem or error.context
        raise UserError(f"{path} is not YAML ({where}{reason}); correct it.") from error
    except yaml.reader.ReaderError as error:
        line = Path(path).read_bytes()[: error.position].count(b"\n") + 1
        raise UserError(f"{path} is not YAML (line {line}: {error.reason}); correct it.") from error


def _check_events(events: Iterator[Any], levels: int) -> None:
    depth = 0
    for event in events:
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > levels:
            raise ValueError(f"it is nested more than {levels} levels deep")


def _values(node: Any, known: dict[int, int]) -> int:
    """Return how many values a node stands for when anchors are written out."""
    if id(node) not in known:
        known[id(node)] = 0
        children = node.value if isinstance(node, yaml.CollectionNode) else ()
        parts = [part for child in children for part in (child if isinstance(child, tuple) else (child,))]
        known[id(node)] = 1 + sum(_values(part, known) for part in parts)
    elif known[id(node)] == 0:
        raise ValueError("an anchor holds itself")
    return known[id(node)]
