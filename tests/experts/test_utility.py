"""Scores of experts against sums written out, and how copies are spent on them."""

import pytest
import torch

from moe_adapt.errors import UserError
from moe_adapt.experts.utility import copies_by_utility, expert_norms, gradient_utility, share_above
from tests.experts.test_grouping import factors


def test_norm_is_that_of_the_change_in_any_gauge():
    a, b = factors()
    expected = torch.einsum("oer,erd->eod", b, a).double().flatten(1).norm(dim=1)
    torch.testing.assert_close(expert_norms(a, b), expected, rtol=1e-5, atol=1e-6)
    turn = torch.tensor([[2.0, 1.0], [0.0, 0.5]])
    a[0], b[:, 0] = turn @ a[0], b[:, 0] @ torch.linalg.inv(turn)
    torch.testing.assert_close(expert_norms(a, b), expected, rtol=1e-5, atol=1e-5)
    shared = expert_norms(a[:1], b)
    torch.testing.assert_close(shared[2], (b[:, 2] @ a[0]).norm().double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dim", [0, 1])
def test_scores_are_sums_over_an_expert(dim):
    generator = torch.Generator().manual_seed(0)
    w, g, v = (torch.randn(3, 3, 2, generator=generator) for _ in range(3))
    v = v.abs()
    written = {
        "weight_gradient": lambda w, g, v: (w * g).abs().sum(),
        "gradient": lambda w, g, v: (g * g).sum(),
        "adam": lambda w, g, v: (g * g / (v + 1e-8)).sum(),
    }
    for score, formula in written.items():
        found = gradient_utility(score, w, g, v, dim)
        expected = [formula(*(t.double().select(dim, e) for t in (w, g, v))) for e in range(3)]
        torch.testing.assert_close(found, torch.stack(expected))
    with pytest.raises(UserError, match="Did you mean 'gradient'"):
        gradient_utility("gradiant", w, g, v, dim)


def test_copies_go_to_the_best_first_and_begin_anew():
    utility = torch.tensor([0.2, 0.9, 0.5])
    assert copies_by_utility(utility, 4, most=1) == [1, 2, 0, 1]
    assert copies_by_utility(utility, 10, most=3) == [1, 1, 1, 2, 2, 2, 0, 0, 0, 1]
    assert copies_by_utility(utility, 0) == []
    with pytest.raises(UserError, match="at least 1 of each"):
        copies_by_utility(utility, 2, most=0)


def test_a_threshold_keeps_one_at_least():
    assert share_above(torch.tensor([5.0, 4.0, 1.0]), 0.1) == 3
    assert share_above(torch.tensor([5.0, 4.0, 1.0]), 1.0) == 1
    assert share_above(torch.zeros(4), 0.25) == 4
    with pytest.raises(UserError, match="share"):
        share_above(torch.ones(2), 1.5)
