"""Files and folders that are there whole or not at all, whenever a process dies; and who may write where.

Everything is written beside its final name, synced to the disk, and then takes the name in one step: a file
by ``rename``, a folder by exchanging the two names (``renameat2``), so that at no moment neither is there.
Where the file system cannot exchange, the old folder is set aside first, and `settle` brings it back after a
kill.

What is being written has a random name, ``.NAME.TOKEN.tmp``, and is locked by its writer. The next writer
removes those that nobody holds any more. A target that is a symbolic link stays one: what it points to is
replaced.
"""

import ctypes
import errno
import fcntl
import os
import secrets
import shutil
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from moe_adapt.errors import UserError

__all__ = ["delete", "exclusively", "free_for", "new_folder", "settle", "used", "write_file"]

_EXCHANGE = 2  # RENAME_EXCHANGE of linux/fs.h
_HERE = -100  # AT_FDCWD
_LEFT = (".tmp", ".old")
_FULL = (errno.ENOSPC, errno.EDQUOT)
_REFUSED = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.EIO,
)


def used(folder: Path, patterns: Collection[str]) -> list[Path]:
    """Return what of these files (names or globs) is in `folder`, sorted by pattern."""
    return [path for pattern in patterns for path in sorted(folder.glob(pattern))]


def delete(paths: Collection[Path]) -> None:
    """Delete files, links and folders."""
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def free_for(
    folder: Path, what: str, marks: Collection[str], overwrite: bool, *, alone: bool = False
) -> None:
    """Make sure that `folder` may be replaced by a new one: it is free, or holds an earlier one of the kind.

    Args:
        folder: The folder to write.
        what: What is written, for messages, such as "an export".
        marks: Names of files by which an earlier one is known.
        overwrite: Whether an earlier one may be replaced.
        alone: Whether nothing but the marks may be in there.

    Raises:
        UserError: If it is a file, or in use; nothing was changed.
    """
    settle(folder)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"the target {folder} is a file; give a folder for {what}.")
    present = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if present and not overwrite:
        raise UserError(
            f"the target {folder} is not empty; give another folder, or overwrite=True (--overwrite)."
        )
    foreign = present - set(marks)
    if present and (foreign == present or (alone and foreign)):
        raise UserError(
            f"{folder} holds other files than {what} ({min(foreign)}) and is not overwritten; give another "
            "folder."
        )


def write_file(path: Path, content: bytes | str | Callable[[BinaryIO], Any], sync: bool = True) -> None:
    """Write a file; at every moment the earlier one or the new one is there, whole.

    Args:
        path: The file; its folder is made if need be.
        content: What it holds (text as UTF-8), or a function that writes into the open file.
        sync: Whether to wait for the disk. Without, a power cut may lose it; a killed process never does.

    Raises:
        UserError: If the disk refuses; the earlier file is intact then.
    """
    target = Path(os.path.realpath(path))
    with _readable_refusal(path):
        target.parent.mkdir(parents=True, exist_ok=True)
        work, held = _fresh(target, folder=False)
        try:
            with work.open("wb") as file:
                if callable(content):
                    content(file)
                else:
                    file.write(content.encode("utf-8") if isinstance(content, str) else content)
                file.flush()
                if sync:
                    os.fsync(file.fileno())
            os.replace(work, target)
            if sync:
                _sync(target.parent)
        finally:
            work.unlink(missing_ok=True)
            os.close(held)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Give an empty folder that becomes `folder` when the block ends, and vanishes if the block fails.

    An earlier `folder` is replaced; ask `free_for` first. One writer at a time: others wait.

    Args:
        folder: The folder to write.

    Raises:
        UserError: If the disk refuses; the earlier folder is intact then.
    """
    target = Path(os.path.realpath(folder))
    with _readable_refusal(folder), exclusively(target):
        work, held = _fresh(target, folder=True)
        try:
            yield work
            for root, _, names in os.walk(work):
                for name in names:
                    _sync(Path(root, name))
                _sync(Path(root))
            _take_place(work, target)
            _sync(target.parent)
        finally:
            shutil.rmtree(work, ignore_errors=True)
            os.close(held)


def settle(folder: Path) -> None:
    """Finish what a killed writer of `folder` began: bring an old folder back, remove what nobody holds.

    Where names cannot be exchanged, a kill between two renames leaves the old folder aside. Readers call this
    before they say that a folder is not there.
    """
    target = Path(os.path.realpath(folder))
    beside = [
        path
        for path in target.parent.glob(f".{_escaped(target.name)}.*")
        if path.suffix in _LEFT and path.name.count(".") == target.name.count(".") + 3  # not of NAME.jsonl
    ]
    for path in beside:
        _if_dead(path, lambda path: _bring_back(path, target))


@contextmanager
def exclusively(path: Path) -> Iterator[None]:
    """Hold the lock of `path` while the block runs; other processes and threads that ask for it wait.

    A read that is followed by a write of the same folder belongs into one such block. It may be nested. The
    lock is a file ``.NAME.lock`` beside `path` that is gone afterwards; a dead process holds nothing. On a
    file system without locks, there are none.
    """
    target = Path(os.path.realpath(path))
    with _guard:
        mutex, _ = _held.setdefault(str(target), (threading.RLock(), []))
    with mutex:
        _, depth = _held[str(target)]
        if depth:
            depth.append(depth[0])
        else:
            depth.append(_locked_file(target))
        try:
            yield
        finally:
            held = depth.pop()
            if not depth and held is not None:
                with suppress(FileNotFoundError):
                    _lock_name(target).unlink()
                os.close(held)


_guard = threading.Lock()
_held: dict[str, tuple[threading.RLock, list[int | None]]] = {}


def _lock_name(target: Path) -> Path:
    return target.with_name(f".{target.name}.lock")


def _locked_file(target: Path) -> int | None:
    target.parent.mkdir(parents=True, exist_ok=True)
    while True:
        held = os.open(_lock_name(target), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(held, fcntl.LOCK_EX)
        except OSError:
            os.close(held)
            return None
        if _is_at(held, _lock_name(target)):  # and was not removed by its last holder meanwhile
            return held
        os.close(held)


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def _fresh(target: Path, folder: bool) -> tuple[Path, int]:
    """Return a new empty file or folder beside `target` and the handle that locks it; remove dead ones."""
    settle(target)
    while True:
        work = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
        if folder:
            work.mkdir()
        else:
            work.touch(exist_ok=False)
        held = os.open(work, os.O_RDONLY | os.O_CLOEXEC)
        with suppress(OSError):
            fcntl.flock(held, fcntl.LOCK_EX)
        if _is_at(held, work):
            return work, held
        os.close(held)


def _if_dead(path: Path, act: Callable[[Path], None]) -> None:
    """Call `act` with a file or folder that no living process holds."""
    with suppress(OSError):  # another process was faster, or holds it
        held = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            act(path)
        finally:
            os.close(held)


def _bring_back(path: Path, target: Path) -> None:
    if path.suffix == ".old" and not os.path.lexists(target):
        path.rename(target)
    elif path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _take_place(work: Path, target: Path) -> None:
    if not os.path.lexists(target):
        os.rename(work, target)
    elif not _exchanged(work, target):
        old = target.with_name(f".{target.name}.{secrets.token_hex(4)}.old")
        held = os.open(target, os.O_RDONLY | os.O_CLOEXEC)
        try:
            with suppress(OSError):
                fcntl.flock(held, fcntl.LOCK_EX)  # so that nobody brings it back meanwhile
            os.rename(target, old)
            try:
                os.rename(work, target)
            except OSError:
                os.rename(old, target)
                raise
            shutil.rmtree(old, ignore_errors=True)
        finally:
            os.close(held)


def _exchanged(one: Path, other: Path) -> bool:
    """Exchange two names in one step; return False where the system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), str(other))


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _escaped(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


@contextmanager
def _readable_refusal(path: Path) -> Iterator[None]:
    """Turn a refusal of the disk, whichever writer met it, into a `UserError`; let other errors pass."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else None
        if number in _FULL or f"code: {errno.ENOSPC}" in str(error) or "No space left" in str(error):
            raise UserError(
                f"there is no space left for {path}; free some and try again (what was there before is "
                "intact)."
            ) from error
        if number in _REFUSED:
            raise UserError(f"{path} could not be written: {os.strerror(int(number or 0))}.") from error
        raise
