"""How good the splits of one column are: the rules of `moe_adapt.drift.hoeffding.splits` in compiled code."""

import math

import numpy as np

from moe_adapt.drift.compiled.jit import kernel

__all__ = ["left_share", "nominal_merit", "numeric_merit", "reaches", "xlog2x"]

_TIE = 1e-10
_KNOWN = 2048
_XLOG2X = np.array([0.0, *(number * math.log2(number) for number in range(1, _KNOWN))])


@kernel
def xlog2x(value):
    """Return x log2 x, 0 for 0; that of whole numbers is looked up."""
    whole = int(value)
    if whole == value and 0 <= whole < _KNOWN:
        return _XLOG2X[whole]
    return value * math.log2(value) if value > 0.0 else 0.0


@kernel
def _deviation(n, squares):
    return math.sqrt(squares / (n - 1.0)) if n > 1.0 and squares > 0.0 else 0.0


@kernel
def _below(n, mean, deviation, threshold):
    return n * (0.5 * (1.0 + math.erf((threshold - mean) / deviation / math.sqrt(2.0))))


@kernel
def left_share(n, mean, squares, low, high, threshold):
    """Return how much of a class's weight lies up to a threshold, by its normal distribution."""
    if threshold < low:
        return 0.0
    if threshold >= high:
        return n
    deviation = _deviation(n, squares)
    return _below(n, mean, deviation, threshold) if deviation > 0.0 else 0.0


@kernel
def _add_class(n, mean, squares, low, high, bottom, step, sums):
    """Add to `sums` [3, points] what a class leaves below and above each threshold, and its w log2 w."""
    own, deviation = xlog2x(n), _deviation(n, squares)
    for point in range(sums.shape[1]):
        at = bottom + step * (point + 1)
        if at >= high:
            sums[0, point] += n
            sums[2, point] += own
        elif at < low or deviation <= 0.0:
            sums[1, point] += n
            sums[2, point] += own
        else:
            left = _below(n, mean, deviation, at)
            sums[0, point] += left
            sums[1, point] += n - left
            sums[2, point] += xlog2x(left) + xlog2x(n - left)


@kernel
def reaches(moments, seen, bottom, top):
    """Write the least and the largest value of every numeric column [F] over the classes `seen`."""
    bottom[:], top[:] = np.inf, -np.inf
    for place in range(len(seen)):
        low, high = moments[seen[place], 2], moments[seen[place], 3]
        for k in range(len(bottom)):
            bottom[k] = low[k] if low[k] < bottom[k] else bottom[k]
            top[k] = high[k] if high[k] > top[k] else top[k]


@kernel
def numeric_merit(gauss, moments, f, seen, bottom, top, before, least_share, sums):
    """Return the gain of the best threshold of a numeric column, and the threshold.

    `seen` are the leaf's classes, `bottom` and `top` how far the column reaches; `sums` [3, points] is room
    to work in, its width the number of thresholds.
    """
    best, threshold = -np.inf, 0.0
    if not bottom < top:
        return best, threshold
    span = top - bottom
    step = span / (sums.shape[1] + 1.0)
    sums[:] = 0.0
    for place in range(len(seen)):
        c = seen[place]
        n = moments[c, 0, f]
        if n > 0.0:
            mean, squares = gauss[0, c, f], moments[c, 1, f]
            _add_class(n, mean, squares, moments[c, 2, f], moments[c, 3, f], bottom, step, sums)
    for point in range(sums.shape[1]):
        at, below, above = bottom + step * (point + 1), sums[0, point], sums[1, point]
        total = below + above
        if not bottom < at < bottom + span or total <= 0.0:
            continue
        if below / total <= least_share or above / total <= least_share:
            continue
        merit = before - (xlog2x(below) + xlog2x(above) - sums[2, point]) / total
        if merit > best:
            best, threshold = merit, at
    return best, threshold


@kernel
def nominal_merit(table, n_classes, before, least_share):
    """Return the gain of the best test of a nominal column [V, C], and its value, -1 for all values."""
    n_values = table.shape[0]
    columns = np.zeros(n_classes)
    total = 0.0
    for v in range(n_values):
        for c in range(n_classes):
            columns[c] += table[v, c]
            total += table[v, c]
    if total <= 0.0:
        return -np.inf, -1
    best, value, inner_sum, branches = -np.inf, 0, 0.0, 0
    for v in range(n_values):
        weight, inside, outside = 0.0, 0.0, 0.0
        for c in range(n_classes):
            weight += table[v, c]
        if weight <= 0.0:
            continue
        for c in range(n_classes):
            inside += xlog2x(table[v, c])
            outside += xlog2x(columns[c] - table[v, c])
        inner = xlog2x(weight) - inside
        inner_sum += inner
        share = weight / total
        branches += share > least_share
        if share > least_share and 1.0 - share > least_share:
            merit = before - (inner + xlog2x(total - weight) - outside) / total
            if merit > best:
                best, value = merit, v
    multiway = before - inner_sum / total if branches >= 2 else -np.inf
    if multiway >= best - _TIE:
        return multiway, -1
    return best, value
