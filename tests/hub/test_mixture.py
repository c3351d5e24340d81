"""Stacking and truncating factors, against the matrices themselves."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moe_adapt.errors import UserError
from moe_adapt.experts import ExpertBank
from moe_adapt.hub.mixture import LowRank, concatenate, single_expert, truncate


def random_bank(experts=3, rank=2, inputs=7, outputs=5, order=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(experts, rank, inputs, generator=generator, dtype=torch.float64)
    b = torch.randn(outputs, experts, rank, generator=generator, dtype=torch.float64)
    return ExpertBank(a, b, scale=1.5, order=order)


@given(st.lists(st.sampled_from([0.0, -0.5, 0.3, 1.0]), min_size=3, max_size=3), st.permutations(range(3)))
def test_concatenation_is_the_gated_sum(gates, order):
    bank = random_bank(order=tuple(order))
    if not any(gates):
        with pytest.raises(UserError, match="used an expert"):
            concatenate(bank, torch.tensor(gates))
        return
    expected = sum(gate * bank.delta_weight(expert) for expert, gate in enumerate(gates))
    lora = concatenate(bank, torch.tensor(gates, dtype=torch.float64))
    torch.testing.assert_close(lora.delta_weight(), expected)
    assert lora.rank == 2 * sum(gate != 0 for gate in gates)


def test_single_expert_follows_the_routers_order():
    bank = random_bank(order=(2, 0, 1))
    for expert in range(3):
        torch.testing.assert_close(single_expert(bank, expert).delta_weight(), bank.delta_weight(expert))


@given(st.integers(1, 5), st.integers(0, 9))
def test_truncation_reaches_the_bound_of_eckart_and_young(rank, seed):
    lora = concatenate(random_bank(seed=seed), torch.ones(3, dtype=torch.float64))
    whole = lora.delta_weight()
    cut, error = truncate(lora, rank)
    values = torch.linalg.svdvals(whole)
    tail = float(values[rank:].norm() / values.norm())
    assert error == pytest.approx(tail, abs=1e-9)
    assert float((cut.delta_weight() - whole).norm() / whole.norm()) == pytest.approx(tail, abs=1e-9)
    assert cut.rank == rank
    torch.testing.assert_close(cut.b.T @ cut.b, cut.a @ cut.a.T, atol=1e-9, rtol=0)


def test_truncation_does_not_see_the_gauge():
    lora = concatenate(random_bank(), torch.ones(3, dtype=torch.float64))
    mixing = torch.randn(6, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    same = LowRank(torch.linalg.solve(mixing, lora.a), lora.b @ mixing, lora.scale)
    one, other = truncate(lora, 3)[0], truncate(same, 3)[0]
    torch.testing.assert_close(one.a, other.a, atol=1e-8, rtol=0)
    torch.testing.assert_close(one.b, other.b, atol=1e-8, rtol=0)


def test_truncation_of_nothing_is_nothing():
    zero = LowRank(torch.randn(4, 6), torch.zeros(5, 4), 1.0)
    cut, error = truncate(zero, 2)
    assert error == 0.0
    assert not cut.delta_weight().any()
