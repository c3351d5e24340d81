"""LoRA-Mixer's selector and specialisation balance loss."""

import math

import pytest
import torch

from moe_adapt.errors import UserError
from moe_adapt.routing import (
    HardSoftSelector,
    Logits,
    RecordGroup,
    RouteContext,
    RoutingRecord,
    SpecializationBalanceLoss,
)


def decide(logits, k=3, hard_until=0.5, **context):
    return HardSoftSelector(k=k, hard_until=hard_until)(Logits(logits, logits), RouteContext(**context))


@pytest.fixture
def logits():
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


def group(logits, mask=None):
    gates = logits.softmax(-1)
    return RecordGroup([RoutingRecord("site", logits, gates, torch.ones_like(gates, dtype=torch.bool), mask)])


def test_labels_decide_in_the_hard_stage_only(logits):
    domains = torch.tensor([2, 0, -1])
    context = RouteContext(training=True, progress=0.2, domain_ids=domains)
    gates = HardSoftSelector(hard_until=0.5)(Logits(logits, logits), context).gates
    expected = torch.tensor([[0, 0, 1.0, 0]] * 2 + [[1.0, 0, 0, 0]] * 2)
    assert torch.equal(gates[:4], expected)
    assert torch.equal(gates[4:], logits[4:].softmax(-1))
    assert context.decided_by_label == {context.site}
    soft = decide(logits, training=True, progress=0.5, domain_ids=domains)
    assert torch.equal(soft.gates, logits.softmax(-1))


def test_top_e_inference_is_dense(logits):
    dense = decide(logits, k=4)
    torch.testing.assert_close(dense.gates, logits.softmax(-1))
    sparse = decide(logits, k=2)
    assert (sparse.selected.sum(-1) == 2).all()
    torch.testing.assert_close(sparse.gates.sum(-1), torch.ones(6))


def test_missing_and_surplus_domains_are_refused(logits):
    with pytest.raises(UserError, match="domain_ids"):
        decide(logits, training=True, progress=0.0)
    with pytest.raises(UserError, match="domain 4 has no expert"):
        decide(logits, training=True, progress=0.0, domain_ids=torch.tensor([0, 4]))
    with pytest.raises(UserError, match="6 tokens for the domain_ids of 4"):
        decide(logits, training=True, progress=0.0, domain_ids=torch.zeros(4, dtype=torch.int64))


@pytest.mark.parametrize(("sign", "sharper"), [(1, True), (-1, False)])
def test_the_sign_of_the_entropy_does_as_named(sign, sharper):
    logits = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    loss = SpecializationBalanceLoss(balance_coef=0.0, entropy_coef=float(sign))
    entropies = []
    for _ in range(50):
        recorded = group(logits)
        value = loss([recorded])
        entropies.append(sign * float(value))
        (gradient,) = torch.autograd.grad(value, recorded.logits)
        logits = logits - 10 * gradient[0]
    assert (entropies[-1] < entropies[0]) is sharper
    assert abs(entropies[-1] - entropies[0]) > 0.05


def test_values_by_hand():
    logits = torch.log(torch.tensor([[0.7, 0.2, 0.1], [0.4, 0.5, 0.1]]))
    mean, first = torch.tensor([0.55, 0.35, 0.1]), torch.tensor([0.5, 0.5, 0.0])
    only = dict(balance_coef=1.0, entropy_coef=0.0)
    assert float(SpecializationBalanceLoss(**only)([group(logits)])) == pytest.approx(3 * float(mean @ first))
    raw = SpecializationBalanceLoss(**only, normalize=False)([group(logits)])
    assert float(raw) == pytest.approx(float(mean @ first))
    soft = SpecializationBalanceLoss(**only, balance="soft")([group(logits)])
    assert float(soft) == pytest.approx(3 * float(mean @ mean))
    mass = torch.tensor([0.55, 0.35, 0.0]) / 0.9
    top = SpecializationBalanceLoss(**only, balance="topk_mass", k=2)([group(logits)])
    assert float(top) == pytest.approx(3 * float(mean @ mass))
    entropy = SpecializationBalanceLoss(balance_coef=0.0, entropy_coef=1.0)([group(torch.zeros(2, 3))])
    assert float(entropy) == pytest.approx(1.0)


@pytest.mark.parametrize("options", [{"balance": "x"}, {"k": 0}])
def test_options_out_of_range(options):
    with pytest.raises(UserError):
        SpecializationBalanceLoss(**options)


def test_entropy_of_masked_experts_has_a_finite_gradient():
    logits = torch.tensor([[0.0, math.log(3), -torch.inf]])
    recorded = group(logits)
    value = SpecializationBalanceLoss(balance_coef=0.0)([recorded])
    (gradient,) = torch.autograd.grad(value, recorded.logits)
    assert torch.isfinite(gradient).all()
