r"""Is one method ahead of another on a stream, or is it luck? An interval from blocks of rows.

Both methods predict the same rows, so what counts is the difference row by row, \(d_i = a_i - b_i\) with
\(a_i\) and \(b_i\) 1 where the answer was right. Neighbouring rows are alike, so the bootstrap draws runs of
them, not rows: blocks that start anywhere and wrap around the end, until the stream is full (circular block
bootstrap). Rows come counted in units, right answers per 100 rows, say. Seeds are drawn as well:

* the rows are the same for every seed (real streams): one draw of blocks, and for each method, on its own, a
  draw of its seeds;
* every seed has its own rows (generators): a draw of seeds, the same for both methods, and blocks for each.

The interval is that of percentiles. With one seed its share of the spread is unknown and left out; few seeds
make intervals too narrow.

Reference: Politis and Romano, A circular block-resampling procedure for stationary data, 1992.
"""

import math

import numpy as np

from moe_adapt.errors import UserError

__all__ = ["paired_block_interval"]


def paired_block_interval(
    first: np.ndarray,
    second: np.ndarray,
    sizes: np.ndarray,
    same_rows: bool,
    block: int | None = None,
    draws: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Return the difference of two accuracies, `first` minus `second`, and the ends of its interval.

    Args:
        first: Right answers of one method [seeds, units].
        second: Those of the other in the same units [seeds, units]; where every seed has its own rows, the
            seeds are the same.
        sizes: Rows of the units [units].
        same_rows: Whether all seeds see the same rows.
        block: Units of a block; the cube root of their number, rounded up, if not given.
        draws: How often to draw.
        level: Share of the draws between the ends.
        seed: Fixes the draws.

    Raises:
        UserError: If the shapes do not belong together.

    >>> right = np.array([[60, 70, 80, 50]])
    >>> paired_block_interval(right, right - 10, np.full(4, 100), same_rows=True)
    (0.1, 0.1, 0.1)
    """
    units = len(sizes)
    if first.shape[1:] != (units,) or second.shape[1:] != (units,) or not units:
        raise UserError(
            f"an interval needs counts [seeds, units] of {units} units, got {first.shape} and {second.shape}."
        )
    if not same_rows and len(first) != len(second):
        raise UserError(
            f"where every seed has its own rows both methods need the same seeds, got {len(first)} and "
            f"{len(second)}."
        )
    rng = np.random.default_rng(seed)
    length = block or math.ceil(round(units ** (1 / 3), 9))
    drawn = _same_rows if same_rows else _own_rows
    found = drawn(first / 1.0, second / 1.0, sizes, min(length, units), draws, rng)
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    difference = (first.mean(axis=0).sum() - second.mean(axis=0).sum()) / sizes.sum()
    return tuple(round(float(value), 12) for value in (difference, low, high))  # type: ignore[return-value]


def _weights(units: int, block: int, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Return how often each draw of blocks has each unit [draws, units]."""
    starts = rng.integers(units, size=(draws, math.ceil(units / block)))
    places = (starts[:, :, None] + np.arange(block)) % units
    places = places.reshape(draws, -1)[:, :units] + units * np.arange(draws)[:, None]
    return np.bincount(places.ravel(), minlength=draws * units).reshape(draws, units)


def _same_rows(
    first: np.ndarray, second: np.ndarray, sizes: np.ndarray, block: int, draws: int, rng: np.random.Generator
) -> np.ndarray:
    weights = _weights(len(sizes), block, draws, rng)

    def mean(right: np.ndarray) -> np.ndarray:
        seeds = rng.integers(len(right), size=(draws, len(right)))
        return np.take_along_axis(weights @ right.T, seeds, axis=1).mean(axis=1)

    return (mean(first) - mean(second)) / (weights @ sizes)


def _own_rows(
    first: np.ndarray, second: np.ndarray, sizes: np.ndarray, block: int, draws: int, rng: np.random.Generator
) -> np.ndarray:
    ahead = first - second
    right, rows = np.zeros(draws), np.zeros(draws)
    for _ in range(len(ahead)):
        weights = _weights(len(sizes), block, draws, rng)
        right += (weights * ahead[rng.integers(len(ahead), size=draws)]).sum(axis=1)
        rows += weights @ sizes
    return right / rows
