"""The oracles of docs and literature: constant routing, the floor, independent routing, cold misses."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_adapt.errors import UserError
from moe_adapt.evaluation.locality import cache_hit_rate, segment_routing_performance, srp_floor


def top(k: int, experts: int, tokens: int, seed: int = 0, block: int = 1) -> torch.Tensor:
    scores = torch.rand(-(-tokens // block), experts, generator=torch.Generator().manual_seed(seed))
    selected = torch.zeros_like(scores, dtype=torch.bool).scatter(1, scores.topk(k).indices, True)
    return selected.repeat_interleave(block, dim=0)[:tokens]


def brute_force(selected: torch.Tensor, window: int) -> float:
    counts = selected.int().unfold(0, window, 1).sum(-1)
    best = 0.0
    for threshold in range(window + 1):
        marked = counts >= threshold
        both = int(counts[marked].sum())
        best = max(best, 2 * both / (window * int(marked.sum()) + int(counts.sum())))
    return best


@pytest.mark.parametrize(("window", "value"), [(4, 0.465), (16, 0.322), (64, 0.252), (256, 0.231)])
def test_independent_routing(window, value):
    selected = top(2, 16, 20_000)
    assert segment_routing_performance(selected, window) == pytest.approx(value, abs=0.02)
    assert srp_floor(selected) == pytest.approx(0.222, abs=1e-3)


@pytest.mark.parametrize(("window", "value"), [(4, 0.986), (16, 0.944), (64, 0.783)])
def test_routing_in_blocks(window, value):
    assert segment_routing_performance(top(2, 16, 20_000, block=64), window) == pytest.approx(value, abs=0.02)


@given(st.integers(1, 4), st.integers(4, 8), st.integers(9, 40), st.integers(1, 9), st.integers(0, 99))
@settings(max_examples=50)
def test_srp_is_the_best_threshold_and_above_the_floor(k, experts, tokens, window, seed):
    selected = top(k, experts, tokens, seed)
    value = segment_routing_performance(selected, window)
    assert value == pytest.approx(brute_force(selected, window))
    assert srp_floor(selected) - 1e-9 <= value <= 1


@given(st.integers(3, 40), st.integers(1, 5), st.integers(0, 99))
def test_the_floor_holds_where_the_number_of_experts_varies(tokens, window, seed):
    generator = torch.Generator().manual_seed(seed)
    selected = torch.rand(tokens, 6, generator=generator) < torch.rand(tokens, 1, generator=generator)
    samples = torch.arange(tokens) // 7
    value = segment_routing_performance(selected, window, samples)
    assert math.isnan(value) or value >= srp_floor(selected, window, samples) - 1e-9


def test_windows_stay_within_samples():
    blocks = torch.eye(2, dtype=torch.bool).repeat_interleave(5, dim=0)
    samples = torch.tensor([0] * 5 + [1] * 5)
    assert segment_routing_performance(blocks, 5, samples) == 1
    assert segment_routing_performance(blocks, 5) < 1
    assert math.isnan(segment_routing_performance(blocks, 6, samples))
    assert math.isnan(segment_routing_performance(blocks, 11))
    with pytest.raises(UserError, match="at least one token"):
        segment_routing_performance(blocks, 0)


@given(
    st.integers(1, 3),
    st.integers(3, 7),
    st.integers(2, 40),
    st.integers(1, 7),
    st.integers(1, 9),
    st.integers(0, 99),
)
@settings(max_examples=50)
def test_no_cache_beats_belady(k, experts, tokens, size, window, seed):
    selected = top(k, experts, tokens, seed)
    best = float(cache_hit_rate(selected, size, "belady"))
    assert float(cache_hit_rate(selected, size, "lru")) <= best + 1e-6
    assert float(cache_hit_rate(selected, size, "segment", window)) <= best + 1e-6
    assert best <= 1


@pytest.mark.parametrize("policy", ["segment", "lru", "belady"])
def test_a_cache_of_all_experts_misses_each_once(policy):
    selected = top(2, 6, 100)
    assert float(cache_hit_rate(selected, 6, policy)) == pytest.approx(1 - 6 / 200)
    assert float(cache_hit_rate(selected, 60, policy)) == pytest.approx(1 - 6 / 200)


def test_policies_by_hand():
    order = torch.tensor([0, 1, 2, 0, 1, 2])
    selected = torch.nn.functional.one_hot(order).bool()
    assert float(cache_hit_rate(selected, 2, "lru")) == 0
    assert float(cache_hit_rate(selected, 2, "belady")) == pytest.approx(2 / 6)
    assert cache_hit_rate(torch.stack([selected, selected]), 2, "belady").shape == (2,)
    with pytest.raises(UserError, match="lru"):
        cache_hit_rate(selected, 2, "fifo")
    with pytest.raises(UserError, match="at least one expert"):
        cache_hit_rate(selected, 0)
