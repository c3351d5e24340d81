"""What a run folder from somebody else may do: be read, but run nothing, unless it is trusted.

A configuration can name Python files to import (``custom_modules``), let a model run code of its own
(``trust_remote_code``), and name any importable class or function as a callback, a logger or an optimizer.
Such a configuration is used if it was written on this machine by this user (it is signed with a key in the
user's state folder), or if the caller trusts it (``--trust``). What names nothing but parts of this package,
PyTorch's optimizers and numbers needs no trust.
"""

import hashlib
import hmac
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from moe_adapt.errors import UserError
from moe_adapt.files import write_file

__all__ = ["check_trusted", "sign", "trusting", "what_runs_code"]

#: Ending of the signature beside a configuration.
SIGNATURE = ".signature"
#: Modules whose classes a configuration may name.
OURS = ("moe_adapt.", "torch.optim.", "lightning.pytorch.LightningModule")
#: Keys whose value is called, or is the class to build.
CALLED = ("class_path", "optimizer", "lr_scheduler", "scheduler")

_trusted: ContextVar[bool] = ContextVar("trusted", default=False)


@contextmanager
def trusting() -> Iterator[None]:
    """Trust every configuration that is read while the block runs."""
    token = _trusted.set(True)
    try:
        yield
    finally:
        _trusted.reset(token)


def what_runs_code(config: Any, place: str = "") -> list[str]:
    """Return what in a configuration can run code that is not of this package, as sentences.

    Args:
        config: The configuration, as JSON types.
        place: Where in it this part stands.

    >>> what_runs_code({"trainer": {"callbacks": [{"class_path": "os.system"}]}})
    ["trainer.callbacks.class_path names 'os.system'"]
    """
    found: list[str] = []
    items = config.items() if isinstance(config, Mapping) else enumerate(config)
    for key, value in items:
        here = f"{place}.{key}".lstrip(".") if isinstance(config, Mapping) else place
        if key == "custom_modules" and value:
            found.append(f"{here} imports {', '.join(map(str, value))}")
        elif key == "trust_remote_code" and value not in (False, None):
            found.append(f"{here} lets a model run code of its own")
        elif key == "attn_implementation" and "/" in str(value):
            found.append(f"{here} fetches the kernel {value!r}")
        elif key in CALLED and isinstance(value, str) and "." in value and not value.startswith(OURS):
            found.append(f"{here} names {value!r}")
        elif isinstance(value, Mapping | list) and key != "custom_modules":
            found += what_runs_code(value, here)
    return found


def check_trusted(path: Path, config: Mapping[str, Any], trust: bool = False) -> None:
    """Check that a configuration may run what it names.

    Args:
        path: The file.
        config: The parts of its content that are going to be used.
        trust: Whether the caller trusts it.

    Raises:
        UserError: If it can run code, was not written here by this user, and is not trusted.
    """
    risks = what_runs_code(config)
    if risks and not (trust or _trusted.get() or _signed(path)):
        more = f" (and {len(risks) - 1} more)" if len(risks) > 1 else ""
        raise UserError(
            f"{path} can run code: {risks[0]}{more}. It was not written here by you; read it, and add "
            "--trust (trust=True) "
            "if you trust where it comes from."
        )


def sign(path: Path) -> None:
    """Sign a configuration that was just written, so that this user needs no ``--trust`` for it.

    Where the user has no state folder that can be written, it stays unsigned.
    """
    key = _key(create=True)
    if key is not None:
        write_file(path.with_name(path.name + SIGNATURE), _signature(path, key))


def _signed(path: Path) -> bool:
    key, beside = _key(create=False), path.with_name(path.name + SIGNATURE)
    if key is None or not beside.is_file():
        return False
    return hmac.compare_digest(beside.read_bytes(), _signature(path, key).encode())


def _signature(path: Path, key: bytes) -> str:
    return hmac.new(key, path.read_bytes(), hashlib.sha256).hexdigest()


def _key(create: bool) -> bytes | None:
    root = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    path = Path(root) / "moe_adapt" / "key"
    try:
        if create and not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "wb") as file:
                file.write(secrets.token_bytes(32))
        key = path.read_bytes() if path.is_file() else b""
        return key if len(key) == 32 else None
    except (OSError, RuntimeError):
        return None
