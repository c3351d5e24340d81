"""Splits by hand: gains, least shares of branches; and the bound of a leaf that has met few classes."""

import math

import numpy as np
import pytest

from moe_adapt.drift.hoeffding.splits import entropy, nominal_splits, numeric_splits
from tests.drift.hoeffding.trees import fast_shape, river_shape, run_both


def test_entropy_is_in_bits():
    assert entropy(np.array([1.0, 1.0, 2.0])) == pytest.approx(1.5)
    assert entropy(np.array([3.0, 0.0])) == entropy(np.zeros(2)) == 0.0


def numeric(least_share, right=10.0):
    """Two classes at the values 0 and 1, which a threshold separates; a share of rows lies right of it."""
    n = np.array([[100.0 - right], [right]])
    values = np.array([[0.0], [1.0]])
    before = entropy(n[:, 0])
    return numeric_splits(n, values, np.zeros((2, 1)), values, values, before, least_share, 3), before


@pytest.mark.parametrize(
    ("least_share", "allowed"), [(0.01, True), (0.099, True), (0.1, False), (0.3, False)]
)
def test_both_branches_of_a_threshold_hold_more_than_the_least_share(least_share, allowed):
    for right in (10.0, 90.0):
        found, before = numeric(least_share, right)
        assert found.merit[0] == (pytest.approx(before) if allowed else -math.inf)
    assert 0 < numeric(0.01)[0].threshold[0] < 1


@pytest.mark.parametrize(
    ("least_share", "allowed"), [(0.01, True), (0.099, True), (0.1, False), (0.3, False)]
)
@pytest.mark.parametrize("binary_only", [True, False])
def test_two_branches_of_values_hold_more_than_the_least_share(least_share, allowed, binary_only):
    for first in (10.0, 90.0):
        table = np.array([[[first, 0.0]], [[0.0, 100.0 - first]]])
        before = entropy(table.sum(axis=(1, 2)))
        found = nominal_splits(table, before, least_share, binary_only)
        assert found.merit[0] == (pytest.approx(before) if allowed else -math.inf)
        assert not allowed or found.value[0] == (0 if binary_only else -1)


def test_the_gain_of_a_value_against_the_rest_by_hand():
    table = np.array([[[6.0, 2.0, 0.0]], [[0.0, 2.0, 6.0]]])
    found = nominal_splits(table, 1.0, 0.01, binary_only=True)
    rest = -(0.2 * math.log2(0.2) + 0.8 * math.log2(0.8))
    assert found.merit[0] == pytest.approx(1.0 - 10 / 16 * rest)
    assert found.value[0] == 0
    every = nominal_splits(table, 1.0, 0.01, binary_only=False)
    assert (every.merit[0], every.value[0]) == (pytest.approx(1.0 - 4 / 16), -1)


def halves(rows):
    """Eight classes: one column tells the first four from the others, a noisy one tells pairs apart."""
    draw = np.random.default_rng(0)
    for _ in range(rows):
        label = int(draw.integers(8))
        yield (
            {"a": label // 4 + draw.normal(scale=0.05), "b": label // 2 % 2 + draw.normal(scale=0.65)},
            label,
        )


def test_the_bound_is_that_of_the_classes_which_a_leaf_has_met():
    """After 1,500 rows both leaves of four classes have split; with the bound of eight neither has."""
    slow, fast, _ = run_both(halves(1500), 1500, grace_period=25, tau=0.01)
    assert river_shape(slow._root) == fast_shape(fast)
    assert fast.n_leaves == 4
