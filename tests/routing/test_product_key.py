"""Product keys: the grid's logits, its k best against all experts, and where the two do not go together."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_adapt.checks import check_scorer
from moe_adapt.errors import UserError
from moe_adapt.routing import Logits, ProductKeyScorer, ProductTopKSelector, RouteContext, TopKSelector
from moe_adapt.routing.selectors.product_top_k import product_top_k
from moe_adapt.tuner import RoutedLoraConfig

CONTEXT = RouteContext()


def grid_logits(side, tokens=9, seed=0):
    generator = torch.Generator().manual_seed(seed)
    u, v = torch.randn(2, tokens, side, generator=generator, dtype=torch.float64).log_softmax(-1)
    return (u.unsqueeze(-1) + v.unsqueeze(-2)).flatten(-2)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 32), st.integers(1, 20), st.integers(0, 999))
def test_the_best_of_the_grid_are_the_best_of_all(side, k, seed):
    k, logits = min(k, side * side), grid_logits(side, seed=seed)
    expected = logits.topk(k, dim=-1)
    found = product_top_k(logits, k)
    assert torch.equal(found, expected.indices.sort(dim=-1).values)


def test_equal_scores_go_to_the_lower_index():
    u, v = torch.tensor([1.0, 2.0, 2.0]), torch.tensor([0.0, 0.0, 1.0])
    assert product_top_k((u[:, None] + v).view(1, 9), 4).tolist() == [[2, 3, 5, 8]]


@pytest.mark.parametrize("renormalize", [True, False])
def test_gates_and_their_gradients_are_those_of_top_k(renormalize):
    weights = torch.arange(64, dtype=torch.float64).sin()
    results = []
    for selector in (ProductTopKSelector(5, renormalize), TopKSelector(5, renormalize)):
        logits = grid_logits(8).requires_grad_()
        gates, selected = selector(Logits(logits, logits), CONTEXT)
        (gradient,) = torch.autograd.grad((gates * weights).sum(), logits)
        results.append((gates, selected, gradient))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_gates_as_published_are_the_products_of_both_probabilities():
    scorer = ProductKeyScorer(6, 16)
    x = torch.randn(5, 6)
    logits = scorer(x, CONTEXT, None)
    torch.testing.assert_close(logits.exp().sum(-1), torch.ones(5))
    scores = (x @ scorer.weight.t()).view(5, 2, 4)
    scores = (scores - scores.mean(-1, keepdim=True)) / (
        scores.var(-1, correction=0, keepdim=True) + 1e-5
    ).sqrt()
    rows, columns = scores.softmax(-1).unbind(1)
    expected = (rows[:, :, None] * columns[:, None, :]).view(5, 16)
    gates, selected = ProductTopKSelector(3, renormalize=False)(Logits(logits, logits), CONTEXT)
    torch.testing.assert_close(gates, expected * selected)
    assert sum(p.numel() for p in scorer.parameters()) == 2 * 4 * 6


def test_the_check_of_scorers_holds_without_the_norm():
    check_scorer(ProductKeyScorer, normalize=False)


@pytest.mark.parametrize("experts", [2, 8, 1023])
def test_a_number_that_is_no_square_is_refused(experts):
    side = math.isqrt(experts)
    with pytest.raises(UserError, match=f"{side**2} or {(side + 1) ** 2}"):
        ProductKeyScorer(4, experts)


@pytest.mark.parametrize("options", [{"scorer": "linear"}, {"modifiers": ["temperature"]}])
def test_the_selector_needs_the_scorers_own_logits(options):
    with pytest.raises(UserError, match="exact for the scorer 'product_key' without modifiers"):
        RoutedLoraConfig(method="atoms", **options)
