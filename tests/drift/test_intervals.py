"""Intervals of paired differences: what they must do whatever the counts are."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_adapt.drift.intervals import paired_block_interval
from moe_adapt.errors import UserError

SIZES = np.full(30, 100)


def counts(seed, seeds=3, units=30):
    return np.random.default_rng(seed).integers(0, 101, size=(seeds, units))


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), same=st.booleans(), block=st.integers(1, 40))
def test_swapping_the_methods_mirrors_the_interval(seed, same, block):
    a, b = counts(seed, 1), counts(seed + 1, 1)
    there = paired_block_interval(a, b, SIZES, same, block, draws=200)
    back = paired_block_interval(b, a, SIZES, same, block, draws=200)
    assert there == pytest.approx([-back[0], -back[2], -back[1]])


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), same=st.booleans(), lead=st.integers(0, 40))
def test_a_lead_that_is_the_same_everywhere_has_no_spread(seed, same, lead):
    a = np.repeat(counts(seed, 1), 3, axis=0)
    found = paired_block_interval(a + lead, a, SIZES, same, draws=200)
    assert found == pytest.approx([lead / 100] * 3)


def test_the_difference_is_that_of_the_accuracies_and_short_units_count_less():
    a, b = np.array([[90, 10]]), np.array([[80, 0]])
    assert paired_block_interval(a, b, np.array([100, 10]), True)[0] == pytest.approx(20 / 110)


def test_seeds_widen_the_interval():
    right = np.full((1, 30), 80)
    alone = paired_block_interval(right, right - 5, SIZES, True)
    spread = np.array([[-3], [0], [3]])
    several = paired_block_interval(right + spread, right - 5, SIZES, True)
    assert alone[1] == alone[2]
    assert several[1] < alone[0] < several[2]


def test_long_blocks_see_that_neighbours_are_alike():
    lead = 20 * np.sin(np.arange(200) / 10)[None]
    other = np.full((1, 200), 50.0)
    sizes = np.full(200, 100)
    short = paired_block_interval(other + lead, other, sizes, True, block=1)
    long = paired_block_interval(other + lead, other, sizes, True, block=15)
    assert long[2] - long[1] > 2 * (short[2] - short[1])


@pytest.mark.parametrize("same", [True, False])
def test_equal_methods_are_told_apart_in_a_twentieth_of_the_cases(same):
    rng = np.random.default_rng(1)
    outside = 0
    for number in range(200):
        a, b = rng.binomial(100, 0.7, size=(2, 1, 60))
        _, low, high = paired_block_interval(a, b, np.full(60, 100), same, draws=300, seed=number)
        outside += not low <= 0 <= high
    assert 4 <= outside <= 26


def test_the_same_draws_for_the_same_seed():
    found = [paired_block_interval(counts(1), counts(2), SIZES, False, seed=seed) for seed in (3, 3, 4)]
    assert found[0] == found[1] != found[2]


def test_counts_that_do_not_belong_together_are_refused():
    with pytest.raises(UserError, match="30 units"):
        paired_block_interval(counts(1), counts(2)[:, :20], SIZES, True)
    with pytest.raises(UserError, match="same seeds"):
        paired_block_interval(counts(1), counts(2, seeds=2), SIZES, False)
