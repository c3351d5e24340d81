"""Paired tests: known quantiles and p-values, symmetry, and what is said in words."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_adapt.errors import UserError
from moe_adapt.evaluation.equivalence import paired_difference, student_cdf, student_quantile

#: 97.5 % quantiles as printed in tables.
TABLE = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 9: 2.262, 14: 2.145, 30: 2.042, 120: 1.980}


@pytest.mark.parametrize(("freedom", "expected"), TABLE.items())
def test_quantiles_are_those_of_the_tables(freedom, expected):
    assert student_quantile(0.975, freedom) == pytest.approx(expected, abs=5e-4)
    assert student_cdf(expected, freedom) == pytest.approx(0.975, abs=5e-5)


@given(st.floats(-50, 50), st.integers(1, 60))
def test_the_distribution_is_symmetric_and_grows(t, freedom):
    assert student_cdf(t, freedom) + student_cdf(-t, freedom) == pytest.approx(1.0)
    assert student_cdf(t + 0.1, freedom) > student_cdf(t, freedom) - 1e-12


def test_the_distribution_is_that_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    for freedom in (1, 2, 3, 8, 25):
        for t in (-7.0, -0.3, 0.0, 1.1, 30.0):
            assert student_cdf(t, freedom) == pytest.approx(stats.t.cdf(t, freedom), abs=1e-12)


def test_p_values_are_those_of_two_one_sided_tests():
    stats = pytest.importorskip("scipy.stats")
    first, second, margin = [0.81, 0.79, 0.80, 0.83], [0.80, 0.80, 0.79, 0.80], 0.04
    differences = [a - b for a, b in zip(first, second, strict=True)]
    below = stats.ttest_1samp(differences, -margin, alternative="greater").pvalue
    above = stats.ttest_1samp(differences, margin, alternative="less").pvalue
    found = paired_difference(first, second, margin)
    assert found.p_equivalent == pytest.approx(max(below, above), abs=1e-10)
    assert found.p_different == pytest.approx(stats.ttest_rel(first, second).pvalue, abs=1e-10)
    interval = stats.t.interval(0.95, 3, found.mean, stats.sem(differences))
    assert (found.mean - found.half_width, found.mean + found.half_width) == pytest.approx(interval)


VALUES = st.lists(st.floats(0, 1), min_size=2, max_size=6)


@given(VALUES, st.floats(0.001, 1))
def test_the_order_of_the_methods_turns_the_sign_alone(first, margin):
    second = first[::-1]
    one, other = paired_difference(first, second, margin), paired_difference(second, first, margin)
    assert one.mean == pytest.approx(-other.mean)
    assert one.p_equivalent == pytest.approx(other.p_equivalent)
    assert one.p_different == pytest.approx(other.p_different)


@given(VALUES, st.floats(0.001, 1))
def test_equivalent_at_five_per_cent_is_a_ninety_per_cent_interval_inside_the_margin(first, margin):
    second = [0.5] * len(first)
    found = paired_difference(first, second, margin, confidence=0.9)
    inside = abs(found.mean) + found.half_width < margin
    assert inside == (found.p_equivalent < 0.05) or math.isclose(
        abs(found.mean) + found.half_width, margin, rel_tol=1e-6
    )


@pytest.mark.parametrize(
    ("first", "second", "verdict"),
    [
        ([0.8, 0.81, 0.79], [0.8, 0.8, 0.8], "equal within 0.05"),
        ([0.9, 0.91, 0.92], [0.5, 0.52, 0.51], "a higher"),
        ([0.5, 0.52, 0.51], [0.9, 0.91, 0.92], "b higher"),
        ([0.2, 0.9, 0.5], [0.9, 0.2, 0.5], "not told apart"),
        ([0.5, 0.5], [0.5, 0.5], "equal within 0.05"),
        ([0.5], [0.6], "one seed says little"),
    ],
)
def test_what_is_shown_in_words(first, second, verdict):
    assert paired_difference(first, second, 0.05).verdict("a", "b", 0.05) == verdict


def test_bad_input_is_said():
    with pytest.raises(UserError, match="as many values on both sides"):
        paired_difference([1.0], [], 0.1)
    with pytest.raises(UserError, match="margin of equivalence is above 0"):
        paired_difference([1.0], [1.0], 0.0)
    with pytest.raises(UserError, match="one degree of freedom"):
        student_cdf(0.0, 0)
    with pytest.raises(UserError, match="between 0 and 1"):
        student_quantile(1.0, 3)
