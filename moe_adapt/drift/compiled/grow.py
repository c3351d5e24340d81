"""How compiled trees grow and are replaced: `GrowingTrees` for one leaf.

A split that needs more leaves than are free changes nothing and tells how many; the caller makes room and asks
again.
"""

import math

import numpy as np

from moe_adapt.drift.compiled.bayes import exact_total, refresh_base
from moe_adapt.drift.compiled.jit import entry, kernel
from moe_adapt.drift.compiled.layout import (
    ACTIVE,
    BASE,
    BEST,
    CODE,
    COUNT,
    DEPTH,
    FEATURE,
    LEAVES,
    LEFT,
    NONE,
    NORMALISER,
    OBSERVED,
    ORDERED,
    RIGHT,
    ROOT,
    SIBLING,
    SLOT,
    TOTAL,
    TRIED,
)
from moe_adapt.drift.compiled.splits import left_share, nominal_merit, numeric_merit, xlog2x
from moe_adapt.drift.hoeffding.nodes import LEAF

__all__ = ["forget", "is_due", "new_leaf", "replace_tree", "split", "split_again"]

_ROUNDING = 1e-6
_LONGEST_WAIT = 4.0
_GRACE, _DELTA, _TAU, _BRANCH, _SHARE, _POINTS, _MOST, _PATIENCE = range(8)


@kernel
def forget(slot, marks, weights, gauss, moments, table, whole):
    """Drop what a leaf observed of the columns."""
    gauss[slot] = 0.0
    moments[slot, :, :2] = 0.0
    moments[slot, :, 2], moments[slot, :, 3] = np.inf, -np.inf
    table[slot] = 0.0
    whole[slot] = 0.0
    weights[slot, NORMALISER] = 0.0
    marks[slot, OBSERVED] = 0


@kernel
def new_leaf(
    tree, depth, nodes, trees, free_nodes, free_slots, leaf, marks, weights, gauss, moments, table, whole
):
    """Return the node of a new, empty leaf; there has to be a free one."""
    node, slot = free_nodes[free_nodes[0]], free_slots[free_slots[0]]
    free_nodes[0] -= 1
    free_slots[0] -= 1
    nodes[node, FEATURE], nodes[node, DEPTH], nodes[node, SLOT] = LEAF, depth, slot
    nodes[node, LEFT], nodes[node, RIGHT], nodes[node, SIBLING], nodes[node, CODE] = NONE, NONE, NONE, NONE
    trees[tree, LEAVES] += 1
    leaf[slot] = 0.0
    marks[slot, BEST], marks[slot, ACTIVE], marks[slot, ORDERED] = -1, 1, 0
    weights[slot, COUNT], weights[slot, BASE] = 0.0, -np.inf
    forget(slot, marks, weights, gauss, moments, table, whole)
    return node


@kernel
def _give(slot, c, weight, marks, classes, weights):
    """Give a new leaf the weight of one class more."""
    classes[slot, 0, marks[slot, ORDERED]] = c
    marks[slot, ORDERED] += 1
    weights[slot, COUNT, c] = weight
    if marks[slot, BEST] < 0 or weight > weights[slot, COUNT, marks[slot, BEST]]:
        marks[slot, BEST] = c


@kernel
def _begin(slot, leaf, marks, classes, weights):
    leaf[slot, TRIED] = exact_total(leaf[slot], marks[slot], classes[slot], weights[slot])
    refresh_base(marks[slot], classes[slot], weights[slot])


@kernel
def is_due(tree, slot, settings, trees, leaf, marks, classes, weights):
    """Return whether a leaf that learned a row is to be looked at for a split now."""
    if settings[_MOST] >= 0.0 and trees[tree, LEAVES] >= settings[_MOST]:
        return False
    if leaf[slot, TOTAL] - leaf[slot, TRIED] < settings[_GRACE] - _ROUNDING:
        return False
    total = exact_total(leaf[slot], marks[slot], classes[slot], weights[slot])
    if total - leaf[slot, TRIED] < settings[_GRACE]:
        return False
    leaf[slot, TRIED] = total
    present = 0
    for place in range(marks[slot, ORDERED]):
        present += weights[slot, COUNT, classes[slot, 0, place]] != 0.0
    return present > 1


@kernel
def split(
    tree, node, n_classes, class_order, value_order, settings, nodes, threshold, trees, free_nodes, free_slots,
    leaf, marks, classes, weights, gauss, moments, table, whole, gains, numeric, nominal,
):  # fmt: skip
    """Look for a split of a leaf and make it; return how many free leaves it lacks, 0 if none."""
    slot = nodes[node, SLOT]
    total, before, most = leaf[slot, TOTAL], 0.0, 0.0
    for c in range(n_classes):
        before -= xlog2x(weights[slot, COUNT, c])
        most = max(most, weights[slot, COUNT, c])
    before = (before + xlog2x(total)) / total
    if most / total > settings[_SHARE]:
        forget(slot, marks, weights, gauss, moments, table, whole)
        refresh_base(marks[slot], classes[slot], weights[slot])
        return 0
    f_count, g_count = gauss.shape[3], whole.shape[1]
    best, second, column, test_at, value = -np.inf, -np.inf, -1, 0.0, -1
    for one in range(f_count + g_count):
        merit, at, v = -np.inf, 0.0, -1
        if one < f_count:
            if numeric[one]:
                merit, at = numeric_merit(
                    gauss[slot], moments[slot], one, n_classes, before, settings[_BRANCH], int(settings[_POINTS])
                )  # fmt: skip
        elif nominal[one - f_count]:
            merit, v = nominal_merit(table[slot, 0, one - f_count], n_classes, before, settings[_BRANCH])
        if merit >= best:
            second = best
            best, column, test_at, value = merit, one, at, v
        elif merit > second:
            second = merit
    spread = math.log2(max(marks[slot, ORDERED], 2))
    needed = 0.5 * spread * spread * math.log(1.0 / settings[_DELTA])
    bound = math.sqrt(needed / total)
    gap = best - second
    if not (gap > bound or bound < settings[_TAU]):
        if settings[_PATIENCE] > 0.0:
            least = max(gap, settings[_TAU]) if gap == gap else settings[_TAU]
            wait = min(needed / (least * least) - total, _LONGEST_WAIT * settings[_GRACE])
            leaf[slot, TRIED] = total + max(wait - settings[_GRACE], 0.0)
        return 0
    if best == -np.inf:
        forget(slot, marks, weights, gauss, moments, table, whole)
        refresh_base(marks[slot], classes[slot], weights[slot])
        return 0
    depth = nodes[node, DEPTH] + 1
    if column >= f_count and value < 0:
        g, children = column - f_count, 0
        for v in range(table.shape[3]):
            for c in range(n_classes):
                if table[slot, 0, g, v, c] > 0.0:
                    children += 1
                    break
        if free_slots[0] < children or free_nodes[0] < children:
            return children
        last = NONE
        for rank in range(value_order.shape[1]):
            v, weight = value_order[g, rank], 0.0
            for c in range(n_classes):
                weight += table[slot, 0, g, v, c]
            if weight <= 0.0:
                continue
            child = new_leaf(
                tree, depth, nodes, trees, free_nodes, free_slots, leaf, marks, weights, gauss, moments, table, whole
            )  # fmt: skip
            own = nodes[child, SLOT]
            for place in range(n_classes):
                c = class_order[place]
                if table[slot, 0, g, v, c] > 0.0:
                    _give(own, c, table[slot, 0, g, v, c], marks, classes, weights)
            _begin(own, leaf, marks, classes, weights)
            nodes[child, CODE] = v
            if last == NONE:
                nodes[node, LEFT] = child
            else:
                nodes[last, SIBLING] = child
            last = child
        nodes[node, FEATURE], threshold[node] = -2 - g, -1.0
    else:
        if free_slots[0] < 2 or free_nodes[0] < 2:
            return 2
        for side in range(2):
            child = new_leaf(
                tree, depth, nodes, trees, free_nodes, free_slots, leaf, marks, weights, gauss, moments, table, whole
            )  # fmt: skip
            own = nodes[child, SLOT]
            if column < f_count:
                _give_numeric(slot, own, side, column, test_at, marks, classes, weights, gauss, moments)
            else:
                _give_value(slot, own, side, column - f_count, value, marks, classes, weights, table)
            _begin(own, leaf, marks, classes, weights)
            nodes[node, LEFT + side] = child
        if column < f_count:
            nodes[node, FEATURE], threshold[node] = column, test_at
        else:
            nodes[node, FEATURE], threshold[node] = -2 - (column - f_count), float(value)
    gains[tree, column] += best * total
    trees[tree, LEAVES] -= 1
    free_slots[0] += 1
    free_slots[free_slots[0]] = slot
    return 0


@kernel
def _give_numeric(slot, own, side, column, at, marks, classes, weights, gauss, moments):
    for place in range(marks[slot, OBSERVED]):
        c = classes[slot, 1, place]
        n, low, high = moments[slot, c, 0, column], moments[slot, c, 2, column], moments[slot, c, 3, column]
        if n == 0.0 or (at < low and side == 0) or (at >= high and side == 1):
            continue
        left = left_share(n, gauss[slot, 0, c, column], moments[slot, c, 1, column], low, high, at)
        _give(own, c, left if side == 0 else n - left, marks, classes, weights)


@kernel
def _give_value(slot, own, side, g, value, marks, classes, weights, table):
    first = classes[slot, 1, 0] if marks[slot, OBSERVED] else -1
    for place in range(-1, marks[slot, ORDERED]):
        c = first if place < 0 else classes[slot, 0, place]
        if c < 0 or (place >= 0 and c == first):
            continue
        weight = table[slot, 0, g, value, c]
        if side == 1:
            rest = 0.0
            for v in range(table.shape[3]):
                rest += table[slot, 0, g, v, c]
            weight = rest - weight
        if weight > 0.0:
            _give(own, c, weight, marks, classes, weights)


@entry
def replace_tree(
    tree, nodes, threshold, trees, free_nodes, free_slots, leaf, marks, weights, gauss, moments, table, whole, gains
):  # fmt: skip
    """Put an empty tree in the place of one."""
    if trees[tree, LEAVES] > 0:
        stack = [trees[tree, ROOT]]
        while len(stack):
            node = stack.pop()
            if nodes[node, FEATURE] == LEAF:
                free_slots[0] += 1
                free_slots[free_slots[0]] = nodes[node, SLOT]
            elif nodes[node, FEATURE] < LEAF and threshold[node] < 0.0:
                child = nodes[node, LEFT]
                while child != NONE:
                    stack.append(child)
                    child = nodes[child, SIBLING]
            else:
                stack.append(nodes[node, LEFT])
                stack.append(nodes[node, RIGHT])
            free_nodes[0] += 1
            free_nodes[free_nodes[0]] = node
    trees[tree, LEAVES] = 0
    gains[tree] = 0.0
    trees[tree, ROOT] = new_leaf(
        tree, 0, nodes, trees, free_nodes, free_slots, leaf, marks, weights, gauss, moments, table, whole
    )


@entry
def split_again(
    tree, node, n_classes, class_order, value_order, settings, nodes, threshold, trees, free_nodes, free_slots,
    leaf, marks, classes, weights, gauss, moments, table, whole, gains, numeric, nominal,
):  # fmt: skip
    """Do the same for Python, after it has made room."""
    return split(
        tree, node, n_classes, class_order, value_order, settings, nodes, threshold, trees, free_nodes, free_slots,
        leaf, marks, classes, weights, gauss, moments, table, whole, gains, numeric, nominal,
    )  # fmt: skip
