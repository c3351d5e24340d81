"""How everything here is compiled: once per machine, kept beside the package or in the user's cache.

`entry` is for functions that Python calls; the others are compiled into those and have no wrappers, which
would take most of the time. `kernel` keeps IEEE arithmetic as it is written. `quick_kernel` may add up in
another order, which lets sums run in vector registers; results differ in the last bits.
"""

from numba import njit

__all__ = ["entry", "kernel", "quick_kernel"]

_BARE = {"error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
kernel = njit(**_BARE)
quick_kernel = njit(fastmath={"reassoc", "contract", "nsz"}, **_BARE)
entry = njit(cache=True, error_model="numpy", no_cfunc_wrapper=True)
