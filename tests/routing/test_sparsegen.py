"""Sparsegen: the closed form against the quadratic programme, its gradient and its limits."""

from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_adapt.errors import UserError
from moe_adapt.routing import Logits, RouteContext, SparsegenSelector
from moe_adapt.routing.selectors.sparsegen import sparsemax


def decide(lam, select, weight=None):
    return SparsegenSelector(lam=lam)(Logits(select, select if weight is None else weight), RouteContext())


def quadratic_programme(u, lam):
    """Minimise |p - u|^2 - lam |p|^2 over the simplex by trying every support."""
    best, lowest = None, float("inf")
    for size in range(1, len(u) + 1):
        for support in combinations(range(len(u)), size):
            v = u[list(support)] / (1 - lam)
            p = torch.zeros_like(u)
            p[list(support)] = v - (v.sum() - 1) / size
            value = (p - u).square().sum() - lam * p.square().sum()
            if (p >= 0).all() and value < lowest:
                best, lowest = p, value
    return best


@settings(max_examples=40)
@given(lam=st.floats(-3, 0.9), scale=st.floats(0.01, 5), experts=st.integers(1, 5), seed=st.integers(0, 999))
def test_equals_the_quadratic_programme(lam, scale, experts, seed):
    generator = torch.Generator().manual_seed(seed)
    u = scale * torch.randn(experts, dtype=torch.float64, generator=generator)
    decision = decide(lam, u.unsqueeze(0))
    torch.testing.assert_close(decision.gates[0], quadratic_programme(u, lam), rtol=1e-9, atol=1e-9)
    assert torch.equal(decision.selected, decision.gates > 0)
    assert decision.selected.any()


def test_gradient():
    u = torch.randn(
        20, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True
    )
    assert torch.autograd.gradcheck(sparsemax, u, eps=1e-7, atol=1e-5)
    gates = sparsemax(u)
    incoming = torch.randn_like(gates)
    (gradient,) = torch.autograd.grad(gates, u, incoming)
    support = gates > 0
    mean = (incoming * support).sum(-1, keepdim=True) / support.sum(-1, keepdim=True)
    torch.testing.assert_close(gradient, (incoming - mean) * support)


def test_limits_of_lam():
    logits = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    sharp = decide(0.99999, logits)
    assert (sharp.selected.sum(-1) == 1).all()
    assert torch.equal(sharp.gates.argmax(-1), logits.argmax(-1))
    torch.testing.assert_close(decide(-1e6, logits).gates, torch.full((50, 6), 1 / 6))
    counts = [decide(lam, logits).selected.sum().item() for lam in (-4, -1, 0, 0.5, 0.9)]
    assert counts == sorted(counts, reverse=True)


def test_large_logits_stay_exact():
    gates = decide(0.0, torch.tensor([[1e6, 1e6 - 0.5, 0.0]])).gates
    torch.testing.assert_close(gates, torch.tensor([[0.75, 0.25, 0.0]]))


def test_select_logits_decide_which_experts_may_get_a_gate():
    select, weight = torch.tensor([[5.0, 4.9, 0.0]]), torch.tensor([[1.0, 1.2, 9.0]])
    decision = decide(0.0, select, weight)
    torch.testing.assert_close(decision.gates, torch.tensor([[0.4, 0.6, 0.0]]))
    assert decision.selected.tolist() == [[True, True, False]]


def test_lam_of_one_is_refused():
    with pytest.raises(UserError, match="below 1"):
        SparsegenSelector(lam=1.0)
