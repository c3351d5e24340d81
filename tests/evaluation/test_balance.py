import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moe_adapt.evaluation.balance import dead_experts, expert_importance, expert_load, max_violation
from moe_adapt.evaluation.entropy import router_entropy


def test_values_by_hand():
    selected = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 0, 0]]).bool()
    load = expert_load(selected)
    assert load.tolist() == pytest.approx([3 / 6, 2 / 6, 1 / 6, 0])
    assert dead_experts(load) == 1
    assert max_violation(load) == pytest.approx(4 * 0.5 - 1)
    gates = torch.tensor([[0.75, 0.25], [0.0, 0.0]])
    assert expert_importance(gates).tolist() == [0.375, 0.125]


def test_nothing_selected():
    load = expert_load(torch.zeros(3, 2, dtype=torch.bool))
    assert load.tolist() == [0, 0]
    assert max_violation(load) == 0
    assert expert_importance(torch.zeros(0, 2)).tolist() == [0, 0]


@given(st.integers(2, 9), st.integers(1, 40), st.integers(0, 99))
def test_bounds(experts, tokens, seed):
    scores = torch.rand(tokens, experts, generator=torch.Generator().manual_seed(seed))
    load = expert_load(scores == scores.max(dim=-1, keepdim=True).values)
    assert float(load.sum()) == pytest.approx(1, abs=1e-5)
    assert -1e-6 <= max_violation(load) <= experts - 1 + 1e-6
    entropy = router_entropy((scores * 5).softmax(dim=-1))
    assert bool(((entropy >= 0) & (entropy <= 1 + 1e-6)).all())


def test_entropy_of_one_expert_is_zero():
    assert router_entropy(torch.ones(3, 1)).tolist() == [0, 0, 0]
