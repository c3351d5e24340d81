"""Many arrays as one argument: a table of addresses and shapes.

Handing an array to compiled code costs a fifth of a microsecond, and a row needs some fifty of them. So
Python keeps a table with a line per array, its address and up to five lengths, and compiled code opens what
it needs. The table holds the arrays, which therefore live as long as it does; whoever replaces an array
renews the table.
"""

from collections import namedtuple
from collections.abc import Mapping
from typing import Any

import numpy as np
from numba import carray, types
from numba.extending import intrinsic

from moe_adapt.drift.compiled.jit import kernel

__all__ = [
    "LINES",
    "Block",
    "Forest",
    "bytes2",
    "floats1",
    "floats2",
    "floats3",
    "ints1",
    "ints2",
    "open_forest",
    "singles1",
    "singles2",
]

_FOREST = (
    "nodes", "threshold", "trees", "free_nodes", "free_slots", "leaf", "marks", "classes", "weights", "gauss",
    "moments", "table", "whole", "gains", "settings", "numeric", "nominal", "class_order", "value_order",
)  # fmt: skip
_OTHERS = (
    "voice_at", "places", "code_place", "code_value", "mean", "squares", "scaled", "bounded", "raw", "vector",
    "codes", "tree_sums", "found", "scores", "tree_proba", "tree_odds", "tree_wrong", "short", "watch_rows",
    "watch_errors", "best_rows", "best_errors", "alarms", "mlp", "mlp_sizes", "linear", "router",
    "router_sizes", "rows", "row_labels", "row_weights", "relevance", "gaps", "near_sums", "near_squares",
    "near", "near_answers", "near_wrong", "scratch", "voice_sums", "voices", "voice_weights",
    "voice_wrong", "logits", "proba", "chosen", "pending", "pending_labels", "pending_weights",
    "pending_masks", "rates",
)  # fmt: skip
#: Name of an array -> its line in the table.
_tuple: Any = namedtuple
LINES: Any = _tuple("LINES", (*_FOREST, *_OTHERS))(*range(len(_FOREST) + len(_OTHERS)))
#: The arrays of the trees as compiled code passes them on: those of `CompiledForest`, columns and orders.
Forest: Any = _tuple("Forest", _FOREST)


class Block:
    """A table of arrays.

    Args:
        arrays: By name, each contiguous, of doubles, single precision, 64-bit integers or truth values.

    Attributes:
        table: Address and lengths of each of `LINES` [lines, 6].
    """

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        self.arrays: dict[str, np.ndarray] = {}
        self.table = np.zeros((len(LINES), 6), dtype=np.int64)
        self.renew(arrays)

    def renew(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take over the arrays that are others than before."""
        for name, array in arrays.items():
            if self.arrays.get(name) is array:
                continue
            assert array.flags.c_contiguous and array.dtype in _KINDS, (
                f"{name}: {array.dtype}, {array.strides}"
            )
            line = self.table[getattr(LINES, name)]
            line[0] = array.ctypes.data
            line[1 : 1 + array.ndim] = array.shape
            self.arrays[name] = array


_KINDS = (np.float64, np.float32, np.int64, np.bool_)


def _pointer_to(kind):
    """Return a compiled function that takes an address for a pointer to `kind`."""

    @intrinsic
    def pointer(typing_context, address):
        signature = types.CPointer(kind)(types.int64)

        def generate(context, builder, signature, values):
            return builder.inttoptr(values[0], context.get_value_type(kind).as_pointer())

        return signature, generate

    return pointer


_floats, _singles, _ints, _bytes = (
    _pointer_to(kind) for kind in (types.float64, types.float32, types.int64, types.uint8)
)


@kernel
def floats1(table, line):
    """Return an array of doubles [n]."""
    return carray(_floats(table[line, 0]), table[line, 1])


@kernel
def floats2(table, line):
    """Return an array of doubles [n, m]."""
    return carray(_floats(table[line, 0]), (table[line, 1], table[line, 2]))


@kernel
def floats3(table, line):
    """Return an array of doubles with three axes."""
    return carray(_floats(table[line, 0]), (table[line, 1], table[line, 2], table[line, 3]))


@kernel
def _floats4(table, line):
    """Return an array of doubles with four axes."""
    shape = (table[line, 1], table[line, 2], table[line, 3], table[line, 4])
    return carray(_floats(table[line, 0]), shape)


@kernel
def _floats5(table, line):
    """Return an array of doubles with five axes."""
    shape = (table[line, 1], table[line, 2], table[line, 3], table[line, 4], table[line, 5])
    return carray(_floats(table[line, 0]), shape)


@kernel
def singles1(table, line):
    """Return an array in single precision [n]."""
    return carray(_singles(table[line, 0]), table[line, 1])


@kernel
def singles2(table, line):
    """Return an array in single precision [n, m]."""
    return carray(_singles(table[line, 0]), (table[line, 1], table[line, 2]))


@kernel
def ints1(table, line):
    """Return an array of integers [n]."""
    return carray(_ints(table[line, 0]), table[line, 1])


@kernel
def ints2(table, line):
    """Return an array of integers [n, m]."""
    return carray(_ints(table[line, 0]), (table[line, 1], table[line, 2]))


@kernel
def _ints3(table, line):
    """Return an array of integers with three axes."""
    return carray(_ints(table[line, 0]), (table[line, 1], table[line, 2], table[line, 3]))


@kernel
def bytes2(table, line):
    """Return an array of truth values [n, m]."""
    return carray(_bytes(table[line, 0]), (table[line, 1], table[line, 2]))


@kernel
def open_forest(table):
    """Return the arrays of the trees."""
    return Forest(
        ints2(table, LINES.nodes),
        floats1(table, LINES.threshold),
        ints2(table, LINES.trees),
        ints1(table, LINES.free_nodes),
        ints1(table, LINES.free_slots),
        floats2(table, LINES.leaf),
        ints2(table, LINES.marks),
        _ints3(table, LINES.classes),
        floats3(table, LINES.weights),
        _floats4(table, LINES.gauss),
        _floats4(table, LINES.moments),
        _floats5(table, LINES.table),
        floats3(table, LINES.whole),
        floats2(table, LINES.gains),
        floats1(table, LINES.settings),
        bytes2(table, LINES.numeric),
        bytes2(table, LINES.nominal),
        ints1(table, LINES.class_order),
        ints2(table, LINES.value_order),
    )
