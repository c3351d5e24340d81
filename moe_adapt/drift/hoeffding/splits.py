r"""How good a split is: information gain of every candidate of every column at once.

With \(H\) the entropy in bits of class weights, a split of weight \(W\) into branches \(b\) gains
\(H(\text{leaf}) - \sum_b \tfrac{W_b}{W} H(b)\), and minus infinity unless two branches hold more than a given
share of \(W\). Numeric columns offer equally spaced thresholds between the least and the largest value, and
the class weights left of one come from a normal distribution per class; nominal columns offer one branch per
value, or one value against the rest.

These are the rules of River's `HoeffdingTreeClassifier` (Gaussian splitter, information gain), with one
difference: where a split into all values and one into value and rest are equally good (always so for columns
with two values), the former is taken; in River the rounding of the last bit decides.

Reference: Domingos and Hulten, Mining High-Speed Data Streams, KDD 2000.
"""

import math
from typing import NamedTuple

import numpy as np
from scipy.special import ndtr

__all__ = ["NominalSplits", "NumericSplits", "entropy", "nominal_splits", "numeric_splits", "split_weights"]

_TIE = 1e-10


class NumericSplits(NamedTuple):
    """The best threshold of each numeric column.

    Attributes:
        merit: Information gain in bits [F], minus infinity where there is no candidate.
        threshold: Rows up to it go left [F].
    """

    merit: np.ndarray
    threshold: np.ndarray


class NominalSplits(NamedTuple):
    """The best test of each nominal column.

    Attributes:
        merit: Information gain in bits [G].
        value: Number of the value that is tested against the rest [G]; -1 for a branch per value.
    """

    merit: np.ndarray
    value: np.ndarray


def _xlog2x(values: np.ndarray) -> np.ndarray:
    return values * np.log2(values + (values <= 0))


def entropy(weights: np.ndarray) -> float:
    """Return the entropy of class weights [C] in bits."""
    total = weights.sum()
    return float((_xlog2x(total) - _xlog2x(weights).sum()) / total) if total > 0 else 0.0


def numeric_splits(
    n: np.ndarray,
    mean: np.ndarray,
    squares: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    before: float,
    least_share: float,
    n_splits: int,
) -> NumericSplits:
    """Return the best threshold of each column.

    Args:
        n: Observed weight [C, F].
        mean: Mean [C, F].
        squares: Sum of squared deviations [C, F].
        low: Least value [C, F], +inf where nothing was observed.
        high: Largest value [C, F], -inf where nothing was observed.
        before: Entropy of the leaf.
        least_share: What two branches must exceed.
        n_splits: Thresholds per column.
    """
    seen = n > 0
    bottom, top = low.min(axis=0), high.max(axis=0)
    span = np.where(bottom < np.inf, top - bottom, 0.0)
    bottom = np.where(bottom < np.inf, bottom, 0.0)
    points = bottom + span / (n_splits + 1.0) * np.arange(1, n_splits + 1)[:, None]
    known = n > 1
    deviation = np.sqrt(np.where(known, squares, 0.0) / np.where(known, n - 1, 1.0))
    spread = deviation > 0
    z = (points[:, None] - mean) / np.where(spread, deviation, 1.0)
    left = ndtr(z) * (n * spread)
    below, above = points[:, None] < low, points[:, None] >= high
    left[below] = 0.0
    np.copyto(left, n, where=above & seen)
    right = n - left
    weights = left.sum(axis=1), right.sum(axis=1)
    total = weights[0] + weights[1]
    safe = np.where(total > 0, total, 1.0)
    after = sum(
        _xlog2x(w) - _xlog2x(side).sum(axis=1) for w, side in zip(weights, (left, right), strict=True)
    )
    allowed = (bottom < points) & (points < bottom + span) & (total > 0)
    for weight in weights:
        allowed &= weight / safe > least_share
    merit = np.where(allowed, before - after / safe, -np.inf)
    best = merit.argmax(axis=0)
    columns = np.arange(n.shape[1])
    return NumericSplits(merit[best, columns], points[best, columns])


def split_weights(
    observed: list[int], column: np.ndarray, means: np.ndarray, threshold: float
) -> tuple[dict[int, float], dict[int, float]]:
    """Return the class weights that a numeric test leaves its two branches.

    Computed apart from `numeric_splits` with the error function of the standard library: these weights decide
    at which row the branches are looked at again, so the last bit has to be River's.

    Args:
        observed: The classes, in the order in which the leaf met them.
        column: Weight, squared deviations, least and largest value of each class [C, 4].
        means: Mean of each class [C].
        threshold: Rows up to it go left.
    """
    left: dict[int, float] = {}
    right: dict[int, float] = {}
    for c in observed:
        n, squares, low, high = column[c].tolist()
        if n == 0:
            continue
        if threshold < low:
            right[c] = n
        elif threshold >= high:
            left[c] = n
        else:
            deviation = (squares / (n - 1)) ** 0.5 if n > 1 else 0.0
            z = (threshold - float(means[c])) / deviation if deviation else -math.inf
            left[c] = n * (0.5 * (1.0 + math.erf(z / math.sqrt(2.0))))
            right[c] = n - left[c]
    return left, right


def nominal_splits(table: np.ndarray, before: float, least_share: float, binary_only: bool) -> NominalSplits:
    """Return the best test of each column.

    Args:
        table: Weight of each class, column and value [C, G, V].
        before: Entropy of the leaf.
        least_share: What two branches must exceed.
        binary_only: Offer no branch per value.
    """
    weight = table.sum(axis=0)
    total = weight.sum(axis=1)
    safe = np.where(total > 0, total, 1.0)
    inner = _xlog2x(weight) - _xlog2x(table).sum(axis=0)
    rest_table = table.sum(axis=2, keepdims=True) - table
    rest = total[:, None] - weight
    outer = _xlog2x(rest) - _xlog2x(rest_table).sum(axis=0)
    share = weight / safe[:, None]
    binary = before - (inner + outer) / safe[:, None]
    binary = np.where((share > least_share) & (1.0 - share > least_share), binary, -np.inf)
    value = binary.argmax(axis=1) if table.shape[2] else np.zeros(len(total), dtype=int)
    columns = np.arange(len(total))
    merit = binary[columns, value] if table.shape[2] else np.full(len(total), -np.inf)
    if not binary_only:
        multiway = before - inner.sum(axis=1) / safe
        multiway = np.where((share > least_share).sum(axis=1) >= 2, multiway, -np.inf)
        every = multiway >= merit - _TIE
        merit, value = np.where(every, multiway, merit), np.where(every, -1, value)
    return NominalSplits(np.where(total > 0, merit, -np.inf), value)
