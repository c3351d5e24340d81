import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moe_adapt.evaluation.agreement import (
    leak,
    permuted_overlap,
    set_overlap,
    set_stability,
    top1_agreement,
)


def top(k: int, tokens: int, experts: int, seed: int) -> torch.Tensor:
    scores = torch.rand(tokens, experts, generator=torch.Generator().manual_seed(seed))
    return torch.zeros_like(scores, dtype=torch.bool).scatter(1, scores.topk(k).indices, True)


def test_values_by_hand():
    a = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 0]]).bool()
    b = torch.tensor([[1, 0, 1], [1, 1, 1], [0, 0, 0]]).bool()
    assert set_overlap(a, b) == pytest.approx((1 / 2 + 2 / 4 + 1) / 3)
    assert set_stability(a, b) == pytest.approx(1 / 3)
    assert top1_agreement(torch.tensor([0, 1]), torch.tensor([0, 2])) == 0.5
    assert leak(torch.zeros(2, 3), 1) == 0
    assert math.isnan(set_overlap(a[:0], b[:0]))


@given(st.integers(1, 4), st.integers(4, 9), st.integers(1, 50), st.integers(0, 99))
def test_overlap_of_top_k_is_the_intersection_over_k(k, experts, tokens, seed):
    a, b = top(k, tokens, experts, seed), top(k, tokens, experts, seed + 1)
    assert set_overlap(a, b) == pytest.approx(float((a & b).sum()) / (k * tokens))
    assert set_overlap(a, a) == set_stability(a, a) == 1
    assert set_overlap(a, b) == set_overlap(b, a) >= set_stability(a, b)


def test_chance_level():
    a, b = top(2, 4000, 8, 0), top(2, 4000, 8, 1)
    assert permuted_overlap(a, a) == pytest.approx(2 / 8, abs=0.02)
    assert permuted_overlap(a, b) == pytest.approx(set_overlap(a, b), abs=0.02)
