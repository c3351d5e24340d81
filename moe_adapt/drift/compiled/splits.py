"""How good the splits of one column are: the rules of `moe_adapt.drift.hoeffding.splits` in compiled code."""

import math

import numpy as np

from moe_adapt.drift.compiled.jit import kernel

__all__ = ["left_share", "nominal_merit", "numeric_merit", "xlog2x"]

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
def left_share(n, mean, squares, low, high, threshold):
    """Return how much of a class's weight lies up to a threshold, by its normal distribution."""
    if threshold < low:
        return 0.0
    if threshold >= high:
        return n
    deviation = math.sqrt(squares / (n - 1.0)) if n > 1.0 and squares > 0.0 else 0.0
    if deviation <= 0.0:
        return 0.0
    return n * (0.5 * (1.0 + math.erf((threshold - mean) / deviation / math.sqrt(2.0))))


@kernel
def numeric_merit(gauss, moments, f, n_classes, before, least_share, n_splits):
    """Return the gain of the best threshold of a numeric column, and the threshold."""
    bottom, top, n_seen = np.inf, -np.inf, 0
    seen = np.empty(n_classes, dtype=np.int64)
    for c in range(n_classes):
        if moments[c, 0, f] > 0.0:
            bottom, top = min(bottom, moments[c, 2, f]), max(top, moments[c, 3, f])
            seen[n_seen] = c
            n_seen += 1
    best, threshold = -np.inf, 0.0
    if not bottom < top:
        return best, threshold
    span = top - bottom
    for point in range(1, n_splits + 1):
        at = bottom + span / (n_splits + 1.0) * point
        if not bottom < at < bottom + span:
            continue
        below, above, inner = 0.0, 0.0, 0.0
        for place in range(n_seen):
            c = seen[place]
            n = moments[c, 0, f]
            left = left_share(n, gauss[0, c, f], moments[c, 1, f], moments[c, 2, f], moments[c, 3, f], at)
            right = n - left
            below += left
            above += right
            inner += xlog2x(left) + xlog2x(right)
        total = below + above
        if total <= 0.0 or below / total <= least_share or above / total <= least_share:
            continue
        merit = before - (xlog2x(below) + xlog2x(above) - inner) / total
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
