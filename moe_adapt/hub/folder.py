"""Write a folder as a whole or not at all: under a temporary name beside the target, then renamed."""

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from moe_adapt.errors import UserError

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
    if target.exists() and not target.is_dir():
        raise UserError(f"the export target {target} is a file; give a folder.")
    if not target.is_dir() or not any(target.iterdir()):
        return
    if not overwrite:
        raise UserError(
            f"the export target {target} is not empty; give another folder, or overwrite=True (--overwrite)."
        )
    if not any((target / mark).is_file() for mark in MARKS):
        raise UserError(
            f"{target} holds other files than an adapter and is not overwritten; give another folder."
        )


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
    work = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work.mkdir()
        yield work
        _move_into_place(work, target)
    except (OSError, SafetensorError) as error:
        if not _disk_is_full(error):
            raise
        raise UserError(
            f"there is no space left for {target}; free some and try again (what was there before is intact)."
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _disk_is_full(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return f"code: {errno.ENOSPC}" in str(error)


def _move_into_place(work: Path, target: Path) -> None:
    old = target.with_name(f".{target.name}.{os.getpid()}.old")
    if target.is_dir():
        target.rename(old)
    try:
        work.rename(target)
    except OSError:
        if old.is_dir():
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


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
