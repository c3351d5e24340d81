"""The folder of an export: when it may be replaced, and written as a whole (`moe_adapt.files`)."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from moe_adapt.files import free_for
from moe_adapt.files import new_folder as whole_folder

__all__ = ["check_target", "folder_size", "new_folder", "write_json"]

#: Files by which a folder is known as an export of this package, and so may be replaced by another one.
MARKS = ("adapter_config.json", "export.json", "learner.json", "pool.json")


def check_target(target: Path, overwrite: bool) -> None:
    """Make sure that an export may be written to `target`.

    Args:
        target: The folder to write.
        overwrite: Whether an earlier export in it may be replaced.

    Raises:
        UserError: If the target is a file, or a folder that is in use.
    """
    free_for(target, "an adapter", MARKS, overwrite)


@contextmanager
def new_folder(target: Path, overwrite: bool) -> Iterator[Path]:
    """Give an empty folder that becomes `target` when the block ends, and vanishes if the block fails.

    Args:
        target: The folder to write.
        overwrite: Whether an earlier export in it may be replaced.

    Raises:
        UserError: If `target` may not be written (`check_target`), or the disk is full.
    """
    check_target(target, overwrite)
    with whole_folder(target) as work:
        yield work


def folder_size(folder: Path) -> int:
    """Return the bytes of all files in a folder and below."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write an object as JSON with sorted keys.

    Args:
        path: The file.
        content: Plain JSON types, no NaN.
    """
    text = json.dumps(content, indent=2, sort_keys=True, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")
