"""What a leaf says about a row, and how it learns one: `LeafStore` for one leaf.

Weights are whole numbers as long as rows count once, so that most logarithms are looked up.
"""

import math

import numpy as np

from moe_adapt.drift.compiled.jit import kernel, quick_kernel
from moe_adapt.drift.compiled.layout import (
    ACTIVE,
    BASE,
    BAYES,
    BEST,
    COUNT,
    MAJORITY,
    NORMALISER,
    OBSERVED,
    ORDERED,
    TOTAL,
)

__all__ = [
    "add_row",
    "count_right",
    "exact_total",
    "leaf_proba",
    "leaf_scores",
    "log",
    "observe",
    "refresh_base",
]

_LOWEST = -1e200
#: Products of numbers between these two are added up as one logarithm; two such numbers do not overflow.
_TINY, _HUGE = 1e-150, 1e150
_KNOWN = 2048
_LOGS = np.array([0.0, *(math.log(number) for number in range(1, _KNOWN))])


@kernel
def log(value):
    """Return the natural logarithm of a number above 0."""
    whole = int(value)
    return _LOGS[whole] if whole == value and whole < _KNOWN else math.log(value)


@quick_kernel
def _far(mean, precision, numbers):
    total = 0.0
    for k in range(len(numbers)):
        gap = numbers[k] - mean[k]
        total += gap * gap * precision[k]
    return total


@kernel
def _far_with_gaps(mean, precision, numbers):
    """Return the same where numbers are missing, without what the missing columns add to the normaliser."""
    total, absent = 0.0, 0.0
    for k in range(len(numbers)):
        if numbers[k] == numbers[k]:
            gap = numbers[k] - mean[k]
            total += gap * gap * precision[k]
        elif precision[k] < 0.0:
            absent += 0.5 * math.log(precision[k] / -math.pi)
    return max(total, _LOWEST) - absent


@kernel
def leaf_scores(weights, gauss, table, whole, nominal, numbers, codes, complete, n_classes, out):
    """Write the naive Bayes scores of a leaf [C], -inf for classes that it has not met."""
    for c in range(n_classes):
        out[c] = weights[BASE, c]
        if len(numbers) and out[c] > -np.inf:
            mean, precision = gauss[0, c], gauss[1, c]
            if complete:
                out[c] += max(_far(mean, precision, numbers), _LOWEST)
            else:
                out[c] += _far_with_gaps(mean, precision, numbers)
    for g in range(len(codes)):
        if nominal[g] and codes[g] >= 0:
            v = codes[g]
            for c in range(n_classes):
                share = table[1, g, v, c]
                out[c] += share - whole[g, c] if share < np.inf else 0.0


@kernel
def leaf_proba(leaf, marks, weights, scores, n_classes, out):
    """Write the probabilities of a leaf [C]: naive Bayes, or class shares where those did better."""
    total = 0.0
    for c in range(n_classes):
        total += weights[COUNT, c]
    if total <= 0.0:
        for c in range(n_classes):
            out[c] = 1.0 / n_classes
        return
    if marks[ACTIVE] == 0 or leaf[BAYES] < leaf[MAJORITY]:
        for c in range(n_classes):
            out[c] = weights[COUNT, c] / total
        return
    top, mass = -np.inf, 0.0
    for c in range(n_classes):
        top = max(top, scores[c])
    for c in range(n_classes):
        out[c] = math.exp(scores[c] - top) if scores[c] > -np.inf else 0.0
        mass += out[c]
    for c in range(n_classes):
        out[c] /= mass


@kernel
def count_right(leaf, marks, classes, scores, y, w):
    """Count which of a leaf's two predictions had a row right; of equal scores the class met first counts."""
    best = marks[BEST]
    if best == y or best < 0:
        leaf[MAJORITY] += w
    if best < 0:
        return
    top, answer = -np.inf, -1
    for place in range(marks[ORDERED]):
        c = classes[0, place]
        if scores[c] > top:
            top, answer = scores[c], c
    if answer == y:
        leaf[BAYES] += w


@kernel
def observe(marks, classes, weights, gauss, moments, table, whole, numeric, nominal, numbers, codes, y, w):
    """Add a row to the distributions of class `y` in the columns that the tree looks at."""
    mean, precision, own = gauss[0, y], gauss[1, y], moments[y]
    logs, product = 0.0, 1.0
    for k in range(len(numbers)):
        if not numeric[k]:
            continue
        x = numbers[k]
        if x == x:
            n, old = own[0, k] + w, mean[k]
            delta = x - old
            new = w / n * delta + old
            squares = own[1, k] + delta * w * (x - new)
            mean[k], own[0, k], own[1, k] = new, n, squares
            own[2, k], own[3, k] = min(own[2, k], x), max(own[3, k], x)
            precision[k] = (1.0 - n) * 0.5 / squares if squares > 0.0 and n > 1.0 else 0.0
        if precision[k] < 0.0:
            factor = precision[k] * (-1.0 / math.pi)
            if _TINY < factor < _HUGE:  # the logarithm of a product instead of many
                product *= factor
                if not _TINY < product < _HUGE:
                    logs, product = logs + math.log(product), 1.0
            else:
                logs += math.log(factor)
    if len(numbers):
        weights[NORMALISER, y] = 0.5 * (logs + math.log(product))
    for g in range(len(codes)):
        if nominal[g] and codes[g] >= 0:
            table[0, g, codes[g], y] += w
            table[1, g, codes[g], y] = log(table[0, g, codes[g], y])
            total = 0.0
            for v in range(table.shape[2]):
                total += table[0, g, v, y]
            whole[g, y] = log(total)
    observed = marks[OBSERVED]
    for place in range(observed):
        if classes[1, place] == y:
            return
    classes[1, observed] = y
    marks[OBSERVED] = observed + 1


@kernel
def refresh_base(marks, classes, weights):
    """Renew what of the scores does not depend on the row; a class left without weight votes with log 1."""
    total = 0.0
    for place in range(marks[ORDERED]):
        total += weights[COUNT, classes[0, place]]
    if total <= 0.0:
        return
    whole = log(total)
    for place in range(marks[ORDERED]):
        c = classes[0, place]
        share = weights[COUNT, c]
        weights[BASE, c] = log(share) - whole + weights[NORMALISER, c] if share > 0.0 else 0.0


@kernel
def add_row(leaf, marks, classes, weights, y, w):
    """Add a row of class `y` to the class weights of a leaf."""
    leaf[TOTAL] += w
    weights[COUNT, y] += w
    own, best, top = -1, -1, marks[BEST]
    for place in range(marks[ORDERED]):
        if classes[0, place] == y:
            own = place
        if classes[0, place] == top:
            best = place
    if own < 0:
        own = marks[ORDERED]
        classes[0, own] = y
        marks[ORDERED] += 1
    if top < 0:
        marks[BEST] = y
    elif y != top:
        mine, other = weights[COUNT, y], weights[COUNT, top]
        if mine > other or (mine == other and own < best):
            marks[BEST] = y
    refresh_base(marks, classes, weights)


@kernel
def exact_total(leaf, marks, classes, weights):
    """Return a leaf's weight, added up afresh in the order of its classes."""
    total = 0.0
    for place in range(marks[ORDERED]):
        total += weights[COUNT, classes[0, place]]
    leaf[TOTAL] = total
    return total
