"""How a row finds its leaf in a compiled tree.

Functions that every row calls take the few arrays they need: handing on the whole `Forest` costs more than
they do.
"""

import numpy as np

from moe_adapt.drift.compiled.jit import kernel
from moe_adapt.drift.compiled.layout import CODE, FEATURE, LEFT, NONE, RIGHT, SIBLING, SLOT, TOTAL
from moe_adapt.drift.hoeffding.nodes import LEAF

__all__ = ["child_of", "descend", "step_down"]

_DEEPEST = 4096


@kernel
def _next(nodes, threshold, parent, child):
    """Return the child of `parent` after `child`, NONE after the last."""
    if nodes[parent, FEATURE] < LEAF and threshold[parent] < 0.0:
        return nodes[child, SIBLING]
    return nodes[parent, RIGHT] if child == nodes[parent, LEFT] else NONE


@kernel
def _weight(nodes, threshold, leaf, top):
    """Return the weight that the leaves below a node have seen."""
    stack = np.empty(_DEEPEST, dtype=np.int64)
    stack[0] = top
    size, total = 1, 0.0
    while size:
        size -= 1
        node = stack[size]
        if nodes[node, FEATURE] == LEAF:
            total += leaf[nodes[node, SLOT], TOTAL]
            continue
        child = nodes[node, LEFT]
        while child != NONE and size < _DEEPEST:
            stack[size] = child
            size += 1
            child = _next(nodes, threshold, node, child)
    return total


@kernel
def _heaviest(nodes, threshold, leaf, node):
    child = nodes[node, LEFT]
    best, most = child, -1.0
    while child != NONE:
        weight = _weight(nodes, threshold, leaf, child)
        if weight > most:
            best, most = child, weight
        child = _next(nodes, threshold, node, child)
    return best


@kernel
def child_of(nodes, node, code):
    """Return the child of a test of all values for one of them, NONE if it has none."""
    child = nodes[node, LEFT]
    while child != NONE and nodes[child, CODE] != code:
        child = nodes[child, SIBLING]
    return child


@kernel
def step_down(nodes, threshold, leaf, numbers, codes, node):
    """Return the child of a test that a row goes to, and whether the test decided it."""
    test = nodes[node, FEATURE]
    if test >= 0:
        value = numbers[test]
        if value == value:
            return (nodes[node, LEFT] if value <= threshold[node] else nodes[node, RIGHT]), 1
    else:
        code = codes[-2 - test]
        if threshold[node] < 0.0:
            child = child_of(nodes, node, code)
            if child != NONE:
                return child, 1
        elif code != -1:
            return (nodes[node, LEFT] if code == threshold[node] else nodes[node, RIGHT]), 1
    return _heaviest(nodes, threshold, leaf, node), 0


@kernel
def descend(nodes, threshold, leaf, numbers, codes, node):
    """Return the leaf below a node that a row falls into, and whether tests alone decided it."""
    regular = 1
    while nodes[node, FEATURE] != LEAF:
        node, known = step_down(nodes, threshold, leaf, numbers, codes, node)
        regular &= known
    return node, regular
