"""Average ranks and Friedman's test against scipy and values from the literature."""

import numpy as np
import pytest
from scipy.stats import friedmanchisquare

from moe_adapt.drift.ranks import rank_methods
from moe_adapt.errors import UserError


def test_agrees_with_scipy():
    table = np.random.default_rng(0).random((4, 9))
    found = rank_methods(dict(zip("abcd", table.tolist(), strict=True)))
    assert found.p_value == pytest.approx(friedmanchisquare(*table).pvalue)
    assert sum(found.ranks.values()) == pytest.approx(10)
    assert list(found.ranks.values()) == sorted(found.ranks.values())


def test_critical_difference_of_demsar():
    """Four methods on 14 data sets: 2.569 * sqrt(4 * 5 / (6 * 14)) = 1.25 (JMLR 2006, section 3.2.4)."""
    scores = {name: np.random.default_rng(seed).random(14).tolist() for seed, name in enumerate("abcd")}
    assert rank_methods(scores).critical_difference == pytest.approx(1.25, abs=0.005)


def test_few_methods_have_ranks_but_no_test():
    found = rank_methods({"a": [0.9], "b": [0.1]})
    assert found.ranks == {"a": 1.0, "b": 2.0}
    assert np.isnan([found.p_value, found.critical_difference]).all()


@pytest.mark.parametrize("scores", [{}, {"a": []}, {"a": [1.0], "b": [1.0, 2.0]}])
def test_mistakes_are_told(scores):
    with pytest.raises(UserError):
        rank_methods(scores)
