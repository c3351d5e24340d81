"""How compiled trees grow and are replaced: `GrowingTrees` for one f.leaf.

A split that would leave fewer free leaves than there are trees (each may need one for a new value) changes
nothing and tells how many; the caller makes room and asks again.
"""

import math

import numpy as np

from moe_adapt.drift.compiled.bayes import exact_total, refresh_base
from moe_adapt.drift.compiled.jit import kernel
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
from moe_adapt.drift.compiled.splits import left_share, nominal_merit, numeric_merit, reaches, xlog2x
from moe_adapt.drift.hoeffding.nodes import LEAF

__all__ = ["forget", "is_due", "new_leaf", "replace_tree", "split"]

_ROUNDING = 1e-6
_LONGEST_WAIT = 4.0
_GRACE, _DELTA, _TAU, _BRANCH, _SHARE, _POINTS, _MOST, _PATIENCE = range(8)


@kernel
def forget(f, slot):
    """Drop what a leaf observed of the columns."""
    f.gauss[slot] = 0.0
    f.moments[slot, :, :2] = 0.0
    f.moments[slot, :, 2], f.moments[slot, :, 3] = np.inf, -np.inf
    f.table[slot, 0], f.table[slot, 1] = 0.0, np.inf
    f.whole[slot] = 0.0
    f.weights[slot, NORMALISER] = 0.0
    f.marks[slot, OBSERVED] = 0


@kernel
def new_leaf(f, tree, depth):
    """Return the node of a new, empty leaf; there has to be a free one."""
    node, slot = f.free_nodes[f.free_nodes[0]], f.free_slots[f.free_slots[0]]
    f.free_nodes[0] -= 1
    f.free_slots[0] -= 1
    f.nodes[node, FEATURE], f.nodes[node, DEPTH], f.nodes[node, SLOT] = LEAF, depth, slot
    f.nodes[node, LEFT], f.nodes[node, RIGHT], f.nodes[node, SIBLING], f.nodes[node, CODE] = (
        NONE,
        NONE,
        NONE,
        NONE,
    )
    f.trees[tree, LEAVES] += 1
    f.leaf[slot] = 0.0
    f.marks[slot, BEST], f.marks[slot, ACTIVE], f.marks[slot, ORDERED] = -1, 1, 0
    f.weights[slot, COUNT], f.weights[slot, BASE] = 0.0, -np.inf
    forget(f, slot)
    return node


@kernel
def _give(f, slot, c, weight):
    """Give a new leaf the weight of one class more."""
    f.classes[slot, 0, f.marks[slot, ORDERED]] = c
    f.marks[slot, ORDERED] += 1
    f.weights[slot, COUNT, c] = weight
    if f.marks[slot, BEST] < 0 or weight > f.weights[slot, COUNT, f.marks[slot, BEST]]:
        f.marks[slot, BEST] = c


@kernel
def _begin(f, slot):
    f.leaf[slot, TRIED] = exact_total(f.leaf[slot], f.marks[slot], f.classes[slot], f.weights[slot])
    refresh_base(f.marks[slot], f.classes[slot], f.weights[slot])


@kernel
def is_due(settings, leaves, leaf, marks, classes, weights):
    """Return whether a leaf that learned a row is to be looked at for a split now."""
    if settings[_MOST] >= 0.0 and leaves >= settings[_MOST]:
        return False
    if leaf[TOTAL] - leaf[TRIED] < settings[_GRACE] - _ROUNDING:
        return False
    total = exact_total(leaf, marks, classes, weights)
    if total - leaf[TRIED] < settings[_GRACE]:
        return False
    leaf[TRIED] = total
    present = 0
    for place in range(marks[ORDERED]):
        present += weights[COUNT, classes[0, place]] != 0.0
    return present > 1


@kernel
def split(f, tree, node, n_classes):
    """Look for a split of a leaf and make it; return how many free leaves it lacks, 0 if none."""
    slot = f.nodes[node, SLOT]
    total = f.leaf[slot, TOTAL]
    seen = np.empty(n_classes, dtype=np.int64)
    n_seen, before, most = _classes_in(f, slot, n_classes, seen)
    if most / total > f.settings[_SHARE]:
        _stop_observing(f, slot)
        return 0
    best, second, column, at, value = _best_test(f, tree, slot, n_classes, seen[:n_seen], before)
    if not _is_sure(f, slot, best - second):
        return 0
    if best == -np.inf:
        _stop_observing(f, slot)
        return 0
    n_numeric = f.gauss.shape[3]
    if column >= n_numeric and value < 0:
        lacking = _split_by_values(f, tree, node, column - n_numeric, n_classes)
    else:
        lacking = _split_in_two(f, tree, node, column, at, value)
    if lacking:
        return lacking
    f.gains[tree, column] += best * total
    f.trees[tree, LEAVES] -= 1
    f.free_slots[0] += 1
    f.free_slots[f.free_slots[0]] = slot
    return 0


@kernel
def _classes_in(f, slot, n_classes, seen):
    """Write which classes a leaf has; return how many, the entropy in bits and the weight of the largest."""
    before, most, n_seen = 0.0, 0.0, 0
    for c in range(n_classes):
        weight = f.weights[slot, COUNT, c]
        if weight > 0.0:
            seen[n_seen] = c
            n_seen += 1
        before -= xlog2x(weight)
        most = max(most, weight)
    total = f.leaf[slot, TOTAL]
    return n_seen, (before + xlog2x(total)) / total, most


@kernel
def _stop_observing(f, slot):
    """Drop what a leaf observed, for no split of it is wanted."""
    forget(f, slot)
    refresh_base(f.marks[slot], f.classes[slot], f.weights[slot])


@kernel
def _best_test(f, tree, slot, n_classes, seen, before):
    """Return the merits of the best test and the next column, and the best one's column, threshold, value."""
    n_numeric, n_nominal = f.gauss.shape[3], f.whole.shape[1]
    sums, bottom, top = np.empty((3, int(f.settings[_POINTS]))), np.empty(n_numeric), np.empty(n_numeric)
    reaches(f.moments[slot], seen, bottom, top)
    best, second, column, test_at, value = -np.inf, -np.inf, -1, 0.0, -1
    for one in range(n_numeric + n_nominal):
        merit, at, v = -np.inf, 0.0, -1
        if one < n_numeric:
            if f.numeric[tree, one]:
                merit, at = numeric_merit(
                    f.gauss[slot], f.moments[slot], one, seen, bottom[one], top[one], before,
                    f.settings[_BRANCH], sums,
                )  # fmt: skip
        elif f.nominal[tree, one - n_numeric]:
            merit, v = nominal_merit(
                f.table[slot, 0, one - n_numeric], n_classes, before, f.settings[_BRANCH]
            )
        if merit >= best:
            second = best
            best, column, test_at, value = merit, one, at, v
        elif merit > second:
            second = merit
    return best, second, column, test_at, value


@kernel
def _is_sure(f, slot, gap):
    """Return whether the best test is ahead by enough; if not, say when the leaf is looked at next."""
    spread, total = math.log2(max(f.marks[slot, ORDERED], 2)), f.leaf[slot, TOTAL]
    needed = 0.5 * spread * spread * math.log(1.0 / f.settings[_DELTA])
    bound = math.sqrt(needed / total)
    if gap > bound or bound < f.settings[_TAU]:
        return True
    if f.settings[_PATIENCE] > 0.0:
        least = max(gap, f.settings[_TAU]) if gap == gap else f.settings[_TAU]
        wait = min(needed / (least * least) - total, _LONGEST_WAIT * f.settings[_GRACE])
        f.leaf[slot, TRIED] = total + max(wait - f.settings[_GRACE], 0.0)
    return False


@kernel
def _room(f, wanted):
    return min(f.free_slots[0], f.free_nodes[0]) >= wanted + len(f.trees)


@kernel
def _split_by_values(f, tree, node, g, n_classes):
    """Give a leaf a child per value of a nominal column; return how many leaves it lacks."""
    slot, children = f.nodes[node, SLOT], 0
    for v in range(f.table.shape[3]):
        for c in range(n_classes):
            if f.table[slot, 0, g, v, c] > 0.0:
                children += 1
                break
    if not _room(f, children):
        return children
    last = NONE
    for rank in range(f.value_order.shape[1]):
        v, weight = f.value_order[g, rank], 0.0
        for c in range(n_classes):
            weight += f.table[slot, 0, g, v, c]
        if weight <= 0.0:
            continue
        child = new_leaf(f, tree, f.nodes[node, DEPTH] + 1)
        own = f.nodes[child, SLOT]
        for place in range(n_classes):
            c = f.class_order[place]
            if f.table[slot, 0, g, v, c] > 0.0:
                _give(f, own, c, f.table[slot, 0, g, v, c])
        _begin(f, own)
        f.nodes[child, CODE] = v
        if last == NONE:
            f.nodes[node, LEFT] = child
        else:
            f.nodes[last, SIBLING] = child
        last = child
    f.nodes[node, FEATURE], f.threshold[node] = -2 - g, -1.0
    return 0


@kernel
def _split_in_two(f, tree, node, column, at, value):
    """Give a leaf two children by a threshold or one value of a column; return how many leaves it lacks."""
    if not _room(f, 2):
        return 2
    slot, n_numeric = f.nodes[node, SLOT], f.gauss.shape[3]
    for side in range(2):
        child = new_leaf(f, tree, f.nodes[node, DEPTH] + 1)
        own = f.nodes[child, SLOT]
        if column < n_numeric:
            _give_numeric(f, slot, own, side, column, at)
        else:
            _give_value(f, slot, own, side, column - n_numeric, value)
        _begin(f, own)
        f.nodes[node, LEFT + side] = child
    if column < n_numeric:
        f.nodes[node, FEATURE], f.threshold[node] = column, at
    else:
        f.nodes[node, FEATURE], f.threshold[node] = -2 - (column - n_numeric), float(value)
    return 0


@kernel
def _give_numeric(f, slot, own, side, column, at):
    for place in range(f.marks[slot, OBSERVED]):
        c = f.classes[slot, 1, place]
        n, low, high = (
            f.moments[slot, c, 0, column],
            f.moments[slot, c, 2, column],
            f.moments[slot, c, 3, column],
        )
        if n == 0.0 or (at < low and side == 0) or (at >= high and side == 1):
            continue
        left = left_share(n, f.gauss[slot, 0, c, column], f.moments[slot, c, 1, column], low, high, at)
        _give(f, own, c, left if side == 0 else n - left)


@kernel
def _give_value(f, slot, own, side, g, value):
    first = f.classes[slot, 1, 0] if f.marks[slot, OBSERVED] else -1
    for place in range(-1, f.marks[slot, ORDERED]):
        c = first if place < 0 else f.classes[slot, 0, place]
        if c < 0 or (place >= 0 and c == first):
            continue
        weight = f.table[slot, 0, g, value, c]
        if side == 1:
            rest = 0.0
            for v in range(f.table.shape[3]):
                rest += f.table[slot, 0, g, v, c]
            weight = rest - weight
        if weight > 0.0:
            _give(f, own, c, weight)


@kernel
def replace_tree(f, tree):
    """Put an empty tree in the place of one."""
    if f.trees[tree, LEAVES] > 0:
        stack = [f.trees[tree, ROOT]]
        while len(stack):
            node = stack.pop()
            if f.nodes[node, FEATURE] == LEAF:
                f.free_slots[0] += 1
                f.free_slots[f.free_slots[0]] = f.nodes[node, SLOT]
            elif f.nodes[node, FEATURE] < LEAF and f.threshold[node] < 0.0:
                child = f.nodes[node, LEFT]
                while child != NONE:
                    stack.append(child)
                    child = f.nodes[child, SIBLING]
            else:
                stack.append(f.nodes[node, LEFT])
                stack.append(f.nodes[node, RIGHT])
            f.free_nodes[0] += 1
            f.free_nodes[f.free_nodes[0]] = node
    f.trees[tree, LEAVES] = 0
    f.gains[tree] = 0.0
    f.trees[tree, ROOT] = new_leaf(f, tree, 0)
