"""How everything here is compiled: once per machine, kept beside the package or in the user's cache.

Numba notices a changed file by the time of the file with the `entry`: whoever changes another file of this
folder removes ``__pycache__/*.nb?``.
"""

from collections.abc import Callable
from typing import Any

import numba

__all__ = ["entry", "kernel", "quick_kernel"]

njit: Any = numba.njit

_BARE = {"error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True}


def kernel(function: Callable[..., Any]) -> Any:
    """Compile into the entries that call it; IEEE arithmetic stays as it is written."""
    return njit(**_BARE)(function)


def quick_kernel(function: Callable[..., Any]) -> Any:
    """Do the same, but let sums be added up in another order, in vector registers: last bits differ."""
    return njit(fastmath={"reassoc", "contract", "nsz"}, **_BARE)(function)


def entry(function: Callable[..., Any]) -> Any:
    """Compile a function that Python calls, and keep it for later processes."""
    return njit(cache=True, error_model="numpy", no_cfunc_wrapper=True)(function)
