r"""Are two methods told apart, or shown to be equal? Paired tests of differences over seeds.

With differences `d_1 .. d_n` of two methods on the same seeds, mean $\bar d$ and standard error `s`,
Student's t on `n - 1` degrees of freedom gives an interval for the difference. Equality is no absence of a
difference: it has to be shown. Two one-sided tests do so (TOST): equivalent within a margin $\delta$ if both

$$t_- = \frac{\bar d + \delta}{s} \quad\text{and}\quad t_+ = \frac{\delta - \bar d}{s}$$

are large; the larger of the two p-values is that of the whole. At level 0.05 this is the same as the 90 %
interval lying inside the margin.

Reference: Schuirmann, "A comparison of the two one-sided tests procedure and the power approach", Journal of
Pharmacokinetics and Biopharmaceutics 15 (1987). Distribution of t: Abramowitz and Stegun, 26.7.3 and 26.7.4.
"""

import math
from collections.abc import Sequence
from statistics import mean, stdev
from typing import NamedTuple

from moe_adapt.errors import UserError

__all__ = ["Difference", "paired_difference", "student_cdf", "student_quantile"]


class Difference(NamedTuple):
    """A paired difference of two methods.

    Attributes:
        mean: Mean of first minus second.
        half_width: Half the width of its interval; None with one pair.
        p_different: Two-sided p-value of the mean being zero; None with one pair.
        p_equivalent: p-value of TOST at the margin; None with one pair. Small: equivalent.
        pairs: Number of pairs.
    """

    mean: float
    half_width: float | None
    p_different: float | None
    p_equivalent: float | None
    pairs: int

    def verdict(self, first: str, second: str, margin: float, level: float = 0.05) -> str:
        """Say in words what is shown at a level: equal, one of them higher, or nothing.

        Args:
            first: Name of the first method.
            second: Name of the second.
            margin: That of the test.
            level: Of the tests.
        """
        if self.p_equivalent is None or self.p_different is None:
            return "one seed says little"
        if self.p_equivalent < level:
            return f"equal within {margin:g}"
        if self.p_different < level:
            return f"{first if self.mean > 0 else second} higher"
        return "not told apart"


def student_cdf(t: float, freedom: int) -> float:
    """Return the probability that Student's t is at most `t`.

    Args:
        t: The value.
        freedom: Degrees of freedom, at least 1.

    Raises:
        UserError: If there are none.

    >>> round(student_cdf(2.2621572, 9), 6)
    0.975
    """
    if freedom < 1:
        raise UserError(f"Student's t needs one degree of freedom or more, got {freedom}.")
    if math.isinf(t):
        return 1.0 if t > 0 else 0.0
    theta = math.atan(t / math.sqrt(freedom))
    sine, cosine = math.sin(theta), math.cos(theta)
    odd = freedom % 2 == 1
    term = cosine if odd else 1.0
    total = 0.0
    for step in range(1 if odd else 0, freedom - 1, 2):
        total += term
        term *= cosine**2 * (step + 1) / (step + 2)
    within = 2 / math.pi * (theta + sine * total) if odd else sine * total
    return 0.5 + within / 2


def student_quantile(probability: float, freedom: int) -> float:
    """Return the value that Student's t stays below with a probability, by bisection.

    >>> round(student_quantile(0.975, 2), 3)
    4.303
    """
    if not 0 < probability < 1:
        raise UserError(f"a probability lies between 0 and 1, got {probability}.")
    high = 1.0
    while student_cdf(high, freedom) < max(probability, 1 - probability):
        high *= 2
    low = -high
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if student_cdf(middle, freedom) < probability else (low, middle)
    return (low + high) / 2


def paired_difference(
    first: Sequence[float], second: Sequence[float], margin: float, confidence: float = 0.95
) -> Difference:
    """Compare two methods pair by pair.

    Args:
        first: Values of the first method, one per seed.
        second: Those of the second, in the same order.
        margin: Difference below which two are equal for practical purposes, in the unit of the values.
        confidence: Of the interval.

    Raises:
        UserError: If there is no pair, or the margin is not positive.

    >>> found = paired_difference([0.80, 0.81, 0.79], [0.80, 0.80, 0.80], margin=0.05)
    >>> found.verdict("a", "b", 0.05)
    'equal within 0.05'
    """
    if len(first) != len(second) or not first:
        raise UserError(f"pairs need as many values on both sides, got {len(first)} and {len(second)}.")
    if not margin > 0:
        raise UserError(f"a margin of equivalence is above 0, got {margin}.")
    differences = [one - other for one, other in zip(first, second, strict=True)]
    middle, count = mean(differences), len(differences)
    if count == 1:
        return Difference(middle, None, None, None, 1)
    error, freedom = stdev(differences) / math.sqrt(count), count - 1
    half = student_quantile(0.5 + confidence / 2, freedom) * error
    below, above = (_ratio(margin + sign * middle, error) for sign in (1, -1))
    p_equivalent = max(student_cdf(-below, freedom), student_cdf(-above, freedom))
    p_different = 2 * student_cdf(-abs(_ratio(middle, error)), freedom)
    return Difference(middle, half, p_different, p_equivalent, count)


def _ratio(value: float, error: float) -> float:
    if error > 0:
        return value / error
    return 0.0 if value == 0 else math.copysign(math.inf, value)
