"""What a leaf says about a row, and how it learns one: `LeafStore` for one leaf, in compiled code."""

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

__all__ = ["add_row", "count_right", "exact_total", "leaf_proba", "leaf_scores", "observe", "refresh_base"]

_LOWEST = -1e200


@quick_kernel
def _far(mean, precision, numbers):
    total = 0.0
    for f in range(len(numbers)):
        gap = numbers[f] - mean[f]
        total += gap * gap * precision[f]
    return total


@kernel
def _far_with_gaps(mean, precision, numbers):
    """Return the same where numbers are missing, without what the missing columns add to the normaliser."""
    total, absent = 0.0, 0.0
    for f in range(len(numbers)):
        if numbers[f] == numbers[f]:
            gap = numbers[f] - mean[f]
            total += gap * gap * precision[f]
        elif precision[f] < 0.0:
            absent += 0.5 * math.log(precision[f] / -math.pi)
    return max(total, _LOWEST) - absent


@kernel
def leaf_scores(weights, gauss, table, whole, numbers, codes, complete, n_classes, out):
    """Write the naive Bayes scores of one leaf [C]; its arrays are those of its slot."""
    for c in range(n_classes):
        score = weights[BASE, c]
        if score > -np.inf:
            if len(numbers):
                if complete:
                    score += max(_far(gauss[0, c], gauss[1, c], numbers), _LOWEST)
                else:
                    score += _far_with_gaps(gauss[0, c], gauss[1, c], numbers)
            for g in range(len(codes)):
                if codes[g] >= 0 and table[0, g, codes[g], c] > 0.0:
                    score += table[1, g, codes[g], c] - whole[g, c]
        out[c] = score


@kernel
def leaf_proba(leaf, marks, weights, scores, n_classes, out):
    """Write the probabilities of one leaf [C]: naive Bayes, or class shares where those were right more often."""
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
    top = -np.inf
    for c in range(n_classes):
        top = max(top, scores[c])
    mass = 0.0
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
def observe(marks, classes, weights, gauss, moments, table, whole, numbers, codes, numeric, nominal, y, w):
    """Add a row to the distributions of class `y` in the columns that the tree looks at."""
    logs = 0.0
    for f in range(len(numbers)):
        if not numeric[f]:
            continue
        x, n = numbers[f], moments[y, 0, f]
        if x == x:
            n += w
            old = gauss[0, y, f]
            delta = x - old
            mean = w / n * delta + old
            squares = moments[y, 1, f] + delta * w * (x - mean)
            gauss[0, y, f], moments[y, 0, f], moments[y, 1, f] = mean, n, squares
            moments[y, 2, f] = min(moments[y, 2, f], x)
            moments[y, 3, f] = max(moments[y, 3, f], x)
            gauss[1, y, f] = (1.0 - n) * 0.5 / squares if squares > 0.0 and n > 1.0 else 0.0
        if gauss[1, y, f] < 0.0:
            logs += math.log(gauss[1, y, f] * (-1.0 / math.pi))
    if len(numbers):
        weights[NORMALISER, y] = 0.5 * logs
    for g in range(len(codes)):
        if nominal[g] and codes[g] >= 0:
            table[0, g, codes[g], y] += w
            table[1, g, codes[g], y] = math.log(table[0, g, codes[g], y])
            total = 0.0
            for v in range(table.shape[2]):
                total += table[0, g, v, y]
            whole[g, y] = math.log(total)
    for place in range(marks[OBSERVED]):
        if classes[1, place] == y:
            return
    classes[1, marks[OBSERVED]] = y
    marks[OBSERVED] += 1


@kernel
def refresh_base(marks, classes, weights):
    """Renew what of the scores does not depend on the row; a class left without weight votes with log 1."""
    total = 0.0
    for place in range(marks[ORDERED]):
        total += weights[COUNT, classes[0, place]]
    for place in range(marks[ORDERED]):
        c = classes[0, place]
        share = weights[COUNT, c]
        weights[BASE, c] = math.log(share / total) + weights[NORMALISER, c] if share > 0.0 else 0.0


@kernel
def add_row(leaf, marks, classes, weights, y, w):
    """Add a row of class `y` to the class weights of a leaf."""
    leaf[TOTAL] += w
    weights[COUNT, y] += w
    own, best = -1, -1
    for place in range(marks[ORDERED]):
        if classes[0, place] == y:
            own = place
        if classes[0, place] == marks[BEST]:
            best = place
    if own < 0:
        own = marks[ORDERED]
        classes[0, own] = y
        marks[ORDERED] += 1
    if marks[BEST] < 0:
        marks[BEST] = y
    elif y != marks[BEST]:
        mine, other = weights[COUNT, y], weights[COUNT, marks[BEST]]
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
