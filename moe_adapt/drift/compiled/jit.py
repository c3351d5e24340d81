"""How everything here is compiled: once per machine, kept beside the package or in the user's cache.

Numba would notice a change only of the file with the `entry`, by its time. What is compiled depends on the
other files here and on constants of the plain path, so what is kept is marked with a hash of all of these.
"""

from collections.abc import Callable
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numba

__all__ = ["CONSTANTS", "entry", "kernel", "part", "quick_kernel", "source_hash"]

njit: Any = numba.njit

_DRIFT = Path(__file__).parent.parent
#: Files of other rooms whose constants go into compiled code.
CONSTANTS = (
    "committee/layers.py",
    "committee/neighbours.py",
    "committee/reliability.py",
    "hoeffding/nodes.py",
    "hoeffding/splits.py",
    "parts/inputs.py",
)

_BARE = {"error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True}


@cache
def source_hash(folder: Path) -> str:
    """Return a hash of the sources that compiled code is made of.

    Args:
        folder: That of `moe_adapt.drift`.
    """
    found = sha256()
    for path in (*sorted((folder / "compiled").glob("*.py")), *(folder / name for name in CONSTANTS)):
        found.update(path.name.encode() + path.read_bytes())
    return found.hexdigest()


def kernel(function: Callable[..., Any]) -> Any:
    """Compile into the entries that call it; IEEE arithmetic stays as it is written."""
    return njit(**_BARE)(function)


def part(function: Callable[..., Any]) -> Any:
    """Make a function a piece of those that call it, instead of compiling it by itself and within them."""
    return njit(inline="always", **_BARE)(function)


def quick_kernel(function: Callable[..., Any]) -> Any:
    """Do the same, but let sums be added up in another order, in vector registers: last bits differ."""
    return njit(fastmath={"reassoc", "contract", "nsz"}, **_BARE)(function)


def entry(function: Callable[..., Any]) -> Any:
    """Compile a function that Python calls, and keep it for later processes."""
    compiled = njit(cache=True, error_model="numpy", no_cfunc_wrapper=True)(function)
    compiled._cache._cache_file._source_stamp = source_hash(_DRIFT)
    return compiled
