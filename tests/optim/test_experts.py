"""Expert updates: preconditioning by old inputs, its measured damage, and freezing."""

import pytest
import torch
from torch import nn

from moe_adapt.errors import UserError
from moe_adapt.optim import (
    DownPreconditioner,
    ExpertDownPreconditioner,
    ExpertUsage,
    FreezeExperts,
    InputMoment,
    UpdateHook,
    UpPreconditioner,
)
from moe_adapt.optim.freezing import frozen_experts, min_max
from moe_adapt.optim.preconditioner import degradation, product_update
from tests.optim.data import WIDTH, task_inputs

E, R, OUT = 4, 3, 5


def past_moment():
    moment = InputMoment(WIDTH)
    moment.observe(task_inputs(0))
    moment.end_task()
    return moment


def factors(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(E, R, WIDTH, generator=generator), torch.randn(OUT, E, R, generator=generator)


def test_degradation_is_the_mean_squared_change_on_samples():
    rows, (a, b), (da, db) = task_inputs(0), factors(0), factors(1)
    change = product_update(a, b, da, db)
    for expert in range(E):
        after = (b[:, expert] + db[:, expert]) @ (a[expert] + da[expert])
        torch.testing.assert_close(change[expert], after - b[:, expert] @ a[expert], rtol=1e-4, atol=1e-4)
    moment = past_moment().matrix()
    measured = torch.einsum("eod,nd->eno", change, rows).square().sum(-1).mean(-1)
    torch.testing.assert_close(degradation(change, moment), measured, rtol=1e-4, atol=1e-3)


def test_down_preconditioner_equals_the_inverse_and_reduces_damage():
    moment, (delta, _) = past_moment(), factors(2)
    rule = DownPreconditioner(c=0.05)
    assert torch.equal(rule.after_step(delta, delta), delta)
    rule.prepare(moment)
    c = moment.matrix()
    mu = 0.05 * float(c.trace()) / WIDTH
    expected = delta @ (mu * torch.linalg.inv(c.double() + mu * torch.eye(WIDTH))).float()
    found = rule.after_step(delta, delta)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    ratio = degradation(found, c).sum() / degradation(delta, c).sum()
    assert ratio < 0.1 * found.square().sum() / delta.square().sum()


def test_each_expert_can_have_its_own_inputs():
    rows, generator = task_inputs(0), torch.Generator().manual_seed(0)
    gates = torch.rand(len(rows), E, generator=generator).softmax(-1)
    gates[:, 3] = 0
    moments = [InputMoment(WIDTH) for _ in range(E)]
    for moment, gate in zip(moments, gates.t(), strict=True):
        moment.observe(rows, gate)
        moment.end_task()
    own = torch.einsum("ne,nd,nf->edf", gates, rows, rows) / gates.sum(0)[:, None, None]
    for expert in range(3):
        torch.testing.assert_close(moments[expert].matrix(), own[expert], rtol=1e-4, atol=1e-5)
    rule, (delta, _) = ExpertDownPreconditioner(c=0.05), factors(2)
    rule.prepare(moments)
    found = rule.after_step(delta, delta)
    for expert in range(3):
        mu = 0.05 * float(own[expert].trace()) / WIDTH
        inverse = torch.linalg.inv(own[expert].double() + mu * torch.eye(WIDTH)).float()
        torch.testing.assert_close(found[expert], delta[expert] @ (mu * inverse), rtol=1e-3, atol=1e-3)
    assert torch.equal(found[3], delta[3]), "an expert that old tokens never used learns freely"


def test_up_preconditioner_equals_the_inverse():
    moment, (a, _), (_, delta) = past_moment(), factors(0), factors(3)
    weight = torch.tensor([0.5, 0.2, 0.1, 0.0])
    rule = UpPreconditioner(c=0.1)
    rule.prepare(moment, a, weight)
    found = rule.after_step(delta, delta)
    for expert in range(3):
        hidden = weight[expert] * a[expert] @ moment.matrix() @ a[expert].t()
        mu = 0.1 * hidden.trace() / R
        expected = delta[:, expert] @ (mu * torch.linalg.inv(hidden + mu * torch.eye(R)))
        torch.testing.assert_close(found[:, expert], expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found[:, 3], delta[:, 3])


def test_singular_old_inputs_leave_their_complement_alone():
    moment = InputMoment(WIDTH)
    moment.observe(torch.eye(WIDTH)[:1])
    moment.end_task()
    rule = DownPreconditioner()
    rule.prepare(moment)
    delta = torch.ones(1, 1, WIDTH)
    found = rule.after_step(delta, delta)[0, 0]
    torch.testing.assert_close(found[1:], torch.ones(WIDTH - 1))
    assert found[0] < 0.01


def test_score_by_hand():
    usage, past = torch.tensor([0.5, 0.3, 0.1, 0.1]), torch.tensor([1.0, 4.0, 2.0, 1.0])
    scores = torch.tensor([1.0, 0.5, 0.0, 0.0]) - torch.tensor([0.0, 1.0, 1 / 3, 0.0])
    torch.testing.assert_close(min_max(usage) - min_max(past), scores)
    assert frozen_experts(usage, past, tau=0.1).tolist() == [False, True, True, True]
    assert not frozen_experts(usage, past, tau=0.1, has_past=False).any()


def test_flat_history_freezes_the_least_used():
    """A property of the published score: min-max puts the least used at 0, which is below any tau > 0."""
    usage = torch.tensor([0.4, 0.3, 0.3, 0.2])
    assert frozen_experts(usage, torch.ones(4), tau=0.1).tolist() == [False, False, False, True]


def test_usage_keeps_tasks_apart():
    usage = ExpertUsage(2)
    usage.observe(torch.tensor([[1.0, 0.0], [0.5, 0.5]]), torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
    assert usage.current.tolist() == [0.75, 0.25]
    assert not usage.frozen(0.1).any()
    usage.end_task()
    assert usage.importance.tolist() == [2.25, 0.25]
    assert usage.mean_gate_sq.tolist() == [0.625, 0.125]
    usage.observe(torch.tensor([[0.0, 1.0]]), torch.ones(1, 2))
    assert usage.current.tolist() == [0.0, 1.0]
    assert usage.frozen(0.1).tolist() == [True, False]
    other = ExpertUsage(2)
    other.load_state_dict(usage.state_dict())
    assert other.frozen(0.1).tolist() == [True, False]


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD])
def test_frozen_experts_stay_bit_identical(optimizer):
    a, b = (nn.Parameter(value) for value in factors())
    start_a, start_b = a.detach().clone(), b.detach().clone()
    freeze_a, freeze_b = FreezeExperts(dim=0), FreezeExperts(dim=1)
    stepper = optimizer([a, b], lr=0.1, weight_decay=0.5)
    down = DownPreconditioner()
    down.prepare(past_moment())
    UpdateHook({"A": (a, [down, freeze_a]), "B": (b, [freeze_b])}).attach(stepper)
    mask = torch.tensor([True, False, True, False])
    freeze_a.mask = freeze_b.mask = mask
    for _ in range(10):
        stepper.zero_grad()
        torch.einsum("oer,erd->eod", b, a).square().sum().backward()
        stepper.step()
    assert torch.equal(a[mask], start_a[mask]) and torch.equal(b[:, mask], start_b[:, mask])
    assert not torch.equal(a[~mask], start_a[~mask]) and not torch.equal(b[:, ~mask], start_b[:, ~mask])


def test_bad_options():
    for build in (
        lambda: DownPreconditioner(c=0),
        lambda: DownPreconditioner(mu=-1.0),
        lambda: UpPreconditioner(c=0),
    ):
        with pytest.raises(UserError, match="positive"):
            build()


def test_a_weight_counts_like_repetitions():
    generator = torch.Generator().manual_seed(0)
    gates, rows = torch.rand(5, 3, generator=generator), torch.randn(5, 4, generator=generator)
    weighted, repeated = ExpertUsage(3), ExpertUsage(3)
    weighted.observe(gates, rows, weight=3.0)
    for _ in range(3):
        repeated.observe(gates, rows)
    for usage in (weighted, repeated):
        usage.observe(gates.flip(0), 2 * rows)
    torch.testing.assert_close(weighted.state_dict(), repeated.state_dict(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(weighted.current, gates.double().mean(0), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("share", [0.5, 0.95])
def test_the_published_inverse_is_that_of_the_leading_directions(share):
    moment, (delta, _) = past_moment(), factors(2)
    rule, whole = DownPreconditioner(mu=0.9, share=share), DownPreconditioner(mu=0.9)
    rule.prepare(moment)
    whole.prepare(moment)
    values, vectors = torch.linalg.eigh(moment.matrix().double())
    values, vectors = values.flip(0), vectors.flip(1)
    rank = int((values.square().cumsum(0) / values.square().sum() < share).sum()) + 1
    leading = vectors[:, :rank] @ torch.diag(values[:rank]) @ vectors[:, :rank].t()
    inverse = torch.linalg.inv(leading + 0.9 * torch.eye(WIDTH))
    expected = (delta.double() @ (0.9 * inverse)).float()
    torch.testing.assert_close(rule.after_step(delta, delta), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(expected, whole.after_step(delta, delta), atol=1e-3)


def test_a_share_of_energy_outside_its_range_is_refused():
    with pytest.raises(UserError, match=r"in \(0, 1\]"):
        DownPreconditioner(share=1.5)
