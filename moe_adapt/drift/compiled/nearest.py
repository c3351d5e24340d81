"""The nearest rows: `Neighbours` in compiled code, with the same operations in the same order."""

import numpy as np

from moe_adapt.drift.committee.neighbours import FLOOR, NEAR, NEAREST, RECENT, SPREAD, STEP, WINDOW
from moe_adapt.drift.compiled.jit import kernel

__all__ = ["compare", "nearest_proba"]

_BLOCK = 32
_HUGE = np.int32(2**31 - 1)


@kernel
def _squares(rows, relevance, vector, count, out):
    """Write the squared distances of the first `count` rows, added up column by column as in numpy."""
    for j in range(count):
        out[j] = 0.0
    n = len(vector)
    whole = n - n % 4
    for d in range(0, whole, 4):
        one, two, three, four = rows[d], rows[d + 1], rows[d + 2], rows[d + 3]
        a, b, c, e = (
            np.float32(vector[d]), np.float32(vector[d + 1]), np.float32(vector[d + 2]),
            np.float32(vector[d + 3]),
        )  # fmt: skip
        p, q, r, s = relevance[d], relevance[d + 1], relevance[d + 2], relevance[d + 3]
        for j in range(count):
            total = out[j] + (one[j] - a) * (one[j] - a) * p
            total += (two[j] - b) * (two[j] - b) * q
            total += (three[j] - c) * (three[j] - c) * r
            out[j] = total + (four[j] - e) * (four[j] - e) * s
    for d in range(whole, n):
        row, x, p = rows[d], np.float32(vector[d]), relevance[d]
        for j in range(count):
            out[j] += (row[j] - x) * (row[j] - x) * p


@kernel
def _closest(squares, first, last, near, kept):
    """Let the rows in places below `last` down to `first` into the list of the nearest; return its length.

    Rows are looked at one by one only in blocks with a row that is near enough. Distances are not below 0,
    so that their bits are ordered as they are, and the least of whole numbers needs no branch.
    """
    bits = squares.view(np.int32)
    limit = bits[near[NEAREST - 1]] if kept == NEAREST else _HUGE
    while last > first:
        start, least = max(first, last - _BLOCK), _HUGE
        for j in range(start, last):
            least = min(least, bits[j])
        if least < limit:
            for j in range(last - 1, start - 1, -1):
                if bits[j] < limit:
                    at = min(kept, NEAREST - 1)
                    while at > 0 and bits[j] < bits[near[at - 1]]:
                        near[at] = near[at - 1]
                        at -= 1
                    near[at] = j
                    kept = min(kept + 1, NEAREST)
                    if kept == NEAREST:
                        limit = bits[near[NEAREST - 1]]
        last = start
    return kept


@kernel
def _vote(near, kept, squares, labels, weights, n_classes, out):
    """Write the probabilities [C] that the nearest rows give."""
    for c in range(n_classes):
        out[c] = FLOOR
    for at in range(kept):
        j = near[at]
        out[labels[j]] += weights[j] / (squares[j] + NEAR)
    total = 0.0
    for c in range(n_classes):
        total += out[c]
    for c in range(n_classes):
        out[c] /= total


@kernel
def nearest_proba(
    rows, relevance, labels, weights, odds, seen, vector, n_classes, squares, near, answers, out
):
    """Write who is near, the answers of the recent rows and of all [2, C], and both by their odds [C]."""
    count = min(seen, WINDOW)
    _squares(rows, relevance, vector, count, squares)
    end, recent = (seen - 1) % WINDOW + 1 if count else 0, min(count, RECENT)
    kept = _closest(squares, max(end - recent, 0), end, near, 0)
    kept = _closest(squares, WINDOW + min(end - recent, 0), WINDOW, near, kept)
    _vote(near, kept, squares, labels, weights, n_classes, answers[0])
    kept = _closest(squares, 0, end - recent, near, kept)
    kept = _closest(squares, end, min(count, WINDOW + min(end - recent, 0)), near, kept)
    for at in range(kept, NEAREST):
        near[at] = -1
    _vote(near, kept, squares, labels, weights, n_classes, answers[1])
    one, two, total = odds[0] ** 6, odds[1] ** 6, 0.0
    for c in range(n_classes):
        out[c] = one * answers[0, c] + two * answers[1, c]
        total += out[c]
    for c in range(n_classes):
        out[c] /= total


@kernel
def _fifth(gaps, d):
    share = gaps[1, d] / gaps[0, d]
    square = share * share
    return square * square * share


@kernel
def compare(rows, relevance, labels, near, vector, y, gaps):
    """Let the nearest rows of the same class and of another, where both are near, weigh the inputs."""
    hit, miss = -1, -1
    for at in range(NEAREST):
        j = near[NEAREST - 1 - at]
        if j >= 0 and labels[j] == y:
            hit = j
        elif j >= 0:
            miss = j
    if hit < 0 or miss < 0:
        return
    total, n = 0.0, len(vector)
    for d in range(n):
        x = np.float32(vector[d])
        own, other = np.float64(rows[d, hit] - x), np.float64(rows[d, miss] - x)
        gaps[0, d] += (own * own + SPREAD - gaps[0, d]) * STEP
        gaps[1, d] += (other * other + SPREAD - gaps[1, d]) * STEP
        total += _fifth(gaps, d)
    mean = total / n
    for d in range(n):
        relevance[d] = np.float32(_fifth(gaps, d) / mean)
