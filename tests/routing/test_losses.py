"""Auxiliary losses: values at the extremes, gradients, and what padding must not change."""

import pytest
import torch

from moe_adapt.errors import UserError
from moe_adapt.routing import (
    AUX_LOSSES,
    EntropyLoss,
    ExpertLoss,
    LoadBalanceLoss,
    RecordGroup,
    RoutingRecord,
    ZLoss,
    group_records,
)


def record(logits, selected=None, mask=None, gates=None, site="s", anchor=None):
    probs = logits.softmax(-1)
    selected = torch.ones_like(logits, dtype=torch.bool) if selected is None else selected
    gates = probs * selected if gates is None else gates
    groups = torch.arange(logits.shape[-1]) // 2
    return RoutingRecord(site, logits, gates, selected, mask, expert_groups=groups, anchor=anchor)


def one_hot_record(experts=4, tokens=6):
    logits = torch.zeros(tokens, experts, dtype=torch.float64)
    logits[:, 1] = 200
    return record(logits, selected=logits > 0)


def uniform_record(experts=4, tokens=6):
    return record(torch.zeros(tokens, experts, dtype=torch.float64))


@pytest.mark.parametrize("assignment", ["counts", "gates", "probs"])
@pytest.mark.parametrize("scope", ["per_site", "global"])
def test_load_balance_is_one_when_uniform_and_e_when_collapsed(assignment, scope):
    loss = LoadBalanceLoss(assignment=assignment, scope=scope)
    assert loss([RecordGroup([uniform_record(), uniform_record()])]).item() == pytest.approx(1)
    assert loss([RecordGroup([one_hot_record()])]).item() == pytest.approx(4)


def test_gradient_of_the_switch_balance():
    logits = torch.randn(9, 5, dtype=torch.float64)
    best = logits.topk(2, dim=-1).indices
    group = RecordGroup([record(logits, torch.zeros(9, 5, dtype=torch.bool).scatter_(-1, best, True))])
    (grad,) = torch.autograd.grad(LoadBalanceLoss()([group]), group.logits)
    probs = logits.softmax(-1)
    share = group.selected[0].double().sum(0) / 18
    expected = 5 * probs * (share - (share * probs).sum(-1, keepdim=True)) / 9
    torch.testing.assert_close(grad[0], expected, rtol=1e-10, atol=1e-12)


def test_dynmole_balance_follows_its_formula():
    logits, gates = torch.randn(7, 4, dtype=torch.float64), torch.rand(7, 4, dtype=torch.float64)
    group = RecordGroup([record(logits, gates=gates)])
    loss = LoadBalanceLoss(assignment="gates", scope="global")([group])
    assert loss.item() == pytest.approx((4 * gates.mean(0) * logits.softmax(-1).mean(0)).sum().item())


def test_global_scope_pools_the_tokens_of_all_sites():
    first, second = torch.randn(7, 4, dtype=torch.float64), torch.randn(7, 4, dtype=torch.float64)
    loss = LoadBalanceLoss(assignment="gates", scope="global")
    apart = loss([RecordGroup([record(first), record(second)])])
    pooled = loss([RecordGroup([record(torch.cat([first, second]))])])
    assert apart.item() == pytest.approx(pooled.item())


def test_global_scope_refuses_unequal_banks():
    groups = [RecordGroup([uniform_record(4)]), RecordGroup([uniform_record(3)])]
    with pytest.raises(UserError, match="same number of experts"):
        LoadBalanceLoss(scope="global")(groups)
    assert LoadBalanceLoss()(groups).item() == pytest.approx(1)


def test_entropy_loss_is_the_mean_entropy():
    loss = EntropyLoss(q=1.1)
    assert loss([RecordGroup([uniform_record(), one_hot_record()])]).item() == pytest.approx(0.5)


def test_z_loss():
    logits = torch.zeros(3, 4, dtype=torch.float64)
    assert ZLoss()([RecordGroup([record(logits)])]).item() == pytest.approx(torch.log(torch.tensor(4.0)) ** 2)


@pytest.mark.parametrize("name", [n for n in AUX_LOSSES if not issubclass(AUX_LOSSES.get(n), ExpertLoss)])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_neither_value_nor_gradient(name, side):
    logits = torch.randn(6, 4, dtype=torch.float64)
    junk = 50 * torch.randn(5, 4, dtype=torch.float64)
    padded = torch.cat([junk, logits] if side == "left" else [logits, junk])
    mask = torch.cat([torch.zeros(5), torch.ones(6)] if side == "left" else [torch.ones(6), torch.zeros(5)])
    loss = AUX_LOSSES.get(name)()
    plain = RecordGroup([record(logits, anchor=logits.flip(1))])
    masked = RecordGroup([record(padded, mask=mask.bool(), anchor=padded.flip(1))])
    torch.testing.assert_close(loss([masked]), loss([plain]))
    (expected,) = torch.autograd.grad(loss([plain]), plain.logits)
    (grad,) = torch.autograd.grad(loss([masked]), masked.logits)
    torch.testing.assert_close(grad[:, mask.bool()], expected)
    assert grad[:, ~mask.bool()].abs().max() == 0


@pytest.mark.parametrize(("weight", "sign"), [(1.0, -1), (-1.0, 1)])
def test_the_sign_of_the_entropy_weight_sharpens_or_flattens(weight, sign):
    logits = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
    loss = EntropyLoss(weight=weight)
    before = loss([RecordGroup([record(logits)])]).item()
    for _ in range(50):
        group = RecordGroup([record(logits)])
        (grad,) = torch.autograd.grad(loss.weight * loss([group]), group.logits)
        logits = logits - 20 * grad[0]
    assert sign * (loss([RecordGroup([record(logits)])]).item() - before) > 0.01


def test_grouping_keeps_positions():
    records = [uniform_record(4), uniform_record(3), uniform_record(4)]
    grouped = group_records(records)
    assert sorted(position for _, members in grouped for position in members) == [0, 1, 2]
    assert {len(members): group.num_experts for group, members in grouped} == {2: 4, 1: 3}


def test_unknown_option_is_refused():
    with pytest.raises(UserError, match="assignment is"):
        LoadBalanceLoss(assignment="count")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("assignment", "shares"),
    [("counts", [1 / 3, 2 / 3]), ("gates", [0.3, 0.5]), ("probs", [0.45, 0.55])],
)
@pytest.mark.parametrize("scope", ["per_site", "global"])
def test_load_balance_of_a_padded_batch_by_hand(assignment, shares, scope):
    """Two real tokens, which select one and two experts, and one of padding."""
    probs = torch.tensor([[0.7, 0.3], [0.2, 0.8], [0.9, 0.1]], dtype=torch.float64)
    selected = torch.tensor([[False, True], [True, True], [True, False]])
    gates = torch.tensor([[0.0, 0.4], [0.6, 0.6], [5.0, 0.0]], dtype=torch.float64)
    mask = torch.tensor([True, True, False])
    group = RecordGroup([record(probs.log(), selected, mask, gates)])
    loss = LoadBalanceLoss(assignment=assignment, scope=scope)([group])
    assert loss.item() == pytest.approx(2 * (shares[0] * 0.45 + shares[1] * 0.55))


@pytest.mark.parametrize("eps", [0.0, 0.05])
def test_the_entropy_loss_adds_eps_to_the_probabilities(eps):
    probs = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]], dtype=torch.float64)
    raised = probs + eps
    expected = (1 - (raised**2).sum(-1)) / (1 - 1 / 3)
    found = EntropyLoss(q=2.0, eps=eps)([RecordGroup([record(probs.log())])])
    assert found.item() == pytest.approx(expected.mean().item())


@pytest.mark.parametrize("detached", [True, False])
def test_the_gradient_of_dynmoles_balance_flows_through_both_factors_unless_gates_are_detached(detached):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(30, 6, generator=generator, dtype=torch.float64)
    selected = torch.rand(30, 6, generator=generator) < 0.5
    mask = torch.arange(30) < 25
    group = RecordGroup([record(logits, selected, mask)])
    loss = LoadBalanceLoss(assignment="gates", scope="global", detach_gates=detached)
    (found,) = torch.autograd.grad(loss([group]), group.logits)
    leaf = logits.clone().requires_grad_()
    probs = leaf.softmax(-1)[:25]
    share = (probs * selected[:25]).mean(0)
    value = 6 * ((share.detach() if detached else share) * probs.mean(0)).sum()
    (expected,) = torch.autograd.grad(value, leaf)
    torch.testing.assert_close(found[0], expected)
    torch.testing.assert_close(loss([group]), value)


def test_only_gates_can_be_left_attached():
    with pytest.raises(UserError, match="detach_gates=False goes with"):
        LoadBalanceLoss(detach_gates=False)
