"""The test for groups: its size without groups, its power with planted ones, and its parts."""

import numpy as np
import pytest
from scipy.cluster.hierarchy import average, cut_tree
from scipy.spatial.distance import squareform

from moe_adapt.training.groups import Grouping, agreement, distances_of
from moe_adapt.training.groups.chance import by_chance, correlation, cuts_of, fit_levels, modular_groups


def drawn(seed: int, groups: int, size: int = 8, apart: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Return distances of members with levels of their own and noise, and the group of each."""
    rng = np.random.default_rng(seed)
    truth = np.arange(size) % groups
    losses = 1.8 + rng.normal(0, 0.3, (size, 1)) + rng.normal(0, 0.45, (1, size))
    losses = losses + rng.normal(0, 0.7, (size, size)) + apart * (truth[:, None] != truth)
    np.fill_diagonal(losses, 0.05)
    return distances_of(np.maximum(losses, 0.05)), truth


def p_values(count: int, **options) -> np.ndarray:
    return np.array([by_chance(drawn(seed, **options)[0], shuffles=19) for seed in range(count)])


def test_its_size_is_the_level():
    assert (p_values(40, groups=1) <= 0.05).sum() <= 5  # 2 are expected; 6 or more have a chance of 1.4 %
    assert (p_values(15, groups=8) <= 0.05).sum() <= 3


def test_its_power_with_eight_members_in_two_groups():
    """Groups are two standard deviations of a distance apart; a test by silhouettes found 68 % of such."""
    assert (p_values(20, groups=2) <= 0.05).mean() >= 0.8


def test_small_groups_are_noticed_if_they_are_clear():
    assert (p_values(5, groups=4, apart=2.5) <= 0.05).all()


def test_levels_of_members_and_the_unit_of_losses_change_nothing():
    distances, _ = drawn(3, groups=2)
    levels = np.random.default_rng(0).random(8)
    raised = distances + levels[:, None] + levels
    np.fill_diagonal(raised, 0.0)
    np.testing.assert_allclose(fit_levels(raised)[1], fit_levels(distances)[1], atol=1e-12)
    assert by_chance(1000 * distances, shuffles=39) == by_chance(distances, shuffles=39)


def test_rests_are_those_of_least_squares():
    distances, _ = drawn(1, groups=2, size=9)
    first, second = np.triu_indices(9, 1)
    design = np.zeros((len(first), 10))
    design[:, 9] = 1
    design[np.arange(len(first)), first] = design[np.arange(len(first)), second] = 1
    solved = np.linalg.lstsq(design, distances[first, second], rcond=None)[0]
    fitted, rests = fit_levels(distances)
    np.testing.assert_allclose(fitted[first, second], design @ solved, atol=1e-10)
    np.testing.assert_allclose(rests.sum(axis=1), 0.0, atol=1e-10)


def test_cuts_and_correlations_are_those_of_scipy_and_numpy():
    distances, truth = drawn(2, groups=3, size=12)
    cuts = cuts_of(distances)
    theirs = cut_tree(average(squareform(distances)))
    assert all(agreement(cuts[:, k], theirs[:, 11 - k]) == 1.0 for k in range(1, 11))
    rests = fit_levels(distances)[1]
    upper = np.triu_indices(12, 1)
    expected = np.corrcoef(rests[upper], (truth[:, None] != truth)[upper])[0, 1]
    assert correlation(rests, truth[:, None])[0] == pytest.approx(expected)


def test_equal_distances_have_no_groups():
    assert by_chance(1.0 - np.eye(8), shuffles=19) == 1.0


def test_modular_groups_of_clear_blocks_are_the_blocks():
    distances, truth = drawn(0, groups=2, size=10, apart=3.0)
    assert agreement(modular_groups(distances), truth) == 1.0


@pytest.mark.parametrize(("p_value", "close"), [(0.06, True), (0.2, True), (0.4, False)])
def test_one_group_near_the_limit_says_what_settles_it(p_value, close):
    names = [f"t{number}" for number in range(8)]
    found = Grouping("tenant", names, [0] * 8, [[0.0] * 8] * 8, {2: 0.3}, p_value=p_value)
    told = found.verdict()
    assert "make one group" in told and f"p = {p_value:.2g}" in told
    assert ("--groups N" in told and "more rows" in told and "may be groups" in told) is close
