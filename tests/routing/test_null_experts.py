"""Null experts: they take places, not gates; a token that picks only them keeps the base output."""

import pytest
import torch

from moe_adapt.errors import UserError
from moe_adapt.experts import ExpertBank
from moe_adapt.routing import (
    LoadBalanceLoss,
    Logits,
    NullExpertsSelector,
    RecordGroup,
    RouteContext,
    Router,
    RoutingRecord,
)

EXPERTS, NULLS, WIDTH = 4, 3, 8


def decide(logits, k=2):
    return NullExpertsSelector(k=k, nulls=NULLS)(Logits(logits, logits), RouteContext())


def random_logits(count=200):
    return torch.randn(count, EXPERTS + NULLS, generator=torch.Generator().manual_seed(0))


def test_gates_are_a_softmax_over_the_true_experts_picked():
    logits = torch.tensor([[3.0, 1.0, 0, 0, 2.0, 0, 0], [0, 0, 0, 0, 5.0, 6.0, 0], [3.0, 1.0, 0, 0, 0, 0, 0]])
    gates, selected = decide(logits)
    assert gates[0].tolist() == [1, 0, 0, 0, 0, 0, 0]
    assert gates[1].tolist() == [0] * 7
    torch.testing.assert_close(gates[2, :2], torch.tensor([3.0, 1.0]).softmax(-1))
    assert selected.sum(-1).tolist() == [2, 2, 2]


def test_a_true_expert_far_below_the_null_ones_still_has_the_gate_one():
    logits = torch.tensor([[-300.0, -400.0, -400.0, -400.0, 0.0, -500.0, -500.0]], requires_grad=True)
    gates = decide(logits).gates
    assert gates[0, 0] == 1
    gates.sum().backward()
    assert torch.isfinite(logits.grad).all()


def test_mean_number_of_true_experts_on_balanced_logits():
    gates = decide(random_logits(20_000), k=3).gates
    assert (gates > 0).sum(-1).float().mean() == pytest.approx(3 * EXPERTS / (EXPERTS + NULLS), abs=0.02)


def test_permuting_null_experts_changes_no_gate():
    logits = random_logits()
    order = [0, 1, 2, 3, 6, 4, 5]
    assert torch.equal(decide(logits).gates, decide(logits[:, order]).gates)


def build():
    return Router.build(
        "linear", [], {"name": "null_experts", "k": 2, "nulls": NULLS}, in_features=WIDTH, num_experts=EXPERTS
    )


def test_the_router_scores_null_experts_and_keeps_them_from_the_bank():
    torch.manual_seed(0)
    router, context = build(), RouteContext(recording=True)
    assert router.scorer.weight.shape == (EXPERTS + NULLS, WIDTH)
    bank = ExpertBank(torch.randn(EXPERTS, 2, WIDTH), torch.randn(3, EXPERTS, 2), scale=1.0)
    x, base = torch.randn(100, WIDTH), torch.randn(100, 3)
    decision = router(x, context, bank, "a", "s", None)
    assert decision.gates.shape == decision.selected.shape == (100, EXPERTS)
    (record,) = context.records.values()
    assert record.nulls == NULLS
    assert record.logits.shape == record.gates.shape == record.selected.shape == (100, EXPERTS + NULLS)
    nothing = ~decision.selected.any(-1)
    assert 0 < nothing.sum() < 100
    assert torch.equal(bank(x, decision.gates, base)[nothing], base[nothing])


def test_balance_treats_null_experts_as_one_kind():
    logits = random_logits()
    gates, selected = decide(logits)

    def loss(order):
        record = RoutingRecord("s", logits[:, order], gates[:, order], selected[:, order], None, nulls=NULLS)
        return LoadBalanceLoss()([RecordGroup([record])])

    order = list(range(EXPERTS + NULLS))
    share = selected.float().mean(0) / 2
    share[EXPERTS:] = share[EXPERTS:].mean()
    expected = 7 * (share * logits.softmax(-1).mean(0)).sum()
    torch.testing.assert_close(loss(order), expected)
    torch.testing.assert_close(loss([0, 1, 2, 3, 6, 4, 5]), expected)


def test_options_out_of_range_are_refused():
    with pytest.raises(UserError, match="at least one"):
        NullExpertsSelector(k=0)
    with pytest.raises(UserError, match="at least one"):
        NullExpertsSelector(nulls=0)
    with pytest.raises(UserError, match="only 7"):
        NullExpertsSelector(k=8, nulls=NULLS).check(EXPERTS)
