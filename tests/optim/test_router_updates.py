"""Rules for router updates under real optimizers: what they protect, and what they do not."""

import pytest
import torch
from torch import nn

from moe_adapt.errors import UserError
from moe_adapt.optim import (
    ROUTER_UPDATES,
    InputMoment,
    PaperUpdate,
    SpectralFilter,
    StrictUpdate,
    TrustUpdate,
    UpdateHook,
)
from moe_adapt.optim.router import (
    null_ratio_filter,
    paper_filter,
    relevant_filter,
    soft_filter,
    trailing_mean,
)
from tests.optim.data import EXPERTS, WIDTH, task_inputs

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "sgd momentum decay": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1, foreach=False),
    "adamw foreach": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1, foreach=True),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1, fused=True),
}


def learn(rule, optimizer="adamw", steps=30, moment=None, task=1):
    """Train a router on task 1 under a rule made from task 0; return it with its start."""
    if moment is None:
        moment = InputMoment(WIDTH)
        moment.observe(task_inputs(0))
        if rule is not None:
            rule.finish(moment)
        moment.end_task()
    generator = torch.Generator().manual_seed(3)
    weight = nn.Parameter(torch.randn(EXPERTS, WIDTH, generator=generator) * 0.1)
    start = weight.detach().clone()
    stepper = OPTIMIZERS[optimizer]([weight])
    hook = UpdateHook({} if rule is None else {"router": (weight, [rule])})
    hook.attach(stepper)
    rows = task_inputs(1)
    target = torch.randint(EXPERTS, (len(rows),), generator=generator)
    if rule is not None:
        rule.prepare(moment, task)
    for _ in range(steps):
        stepper.zero_grad()
        loss = nn.functional.cross_entropy(rows @ weight.t(), target)
        loss.backward()
        stepper.step()
        if rule is not None:
            moment.observe(rows)
            rule.refresh(moment)
    return weight.detach(), start, float(loss.detach()), hook


def score_change(weight, start):
    old = task_inputs(0)
    return float(((weight - start) @ old.t()).norm() / (start @ old.t()).norm())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_strict_protects_the_signal_space_of_old_inputs(optimizer):
    moment = InputMoment(WIDTH)
    moment.observe(task_inputs(0))
    moment.end_task()
    vectors = moment.spectrum().vectors[:, : moment.spectrum().rank(0.99)]
    weight, start, _, hook = learn(StrictUpdate(delta=0.99), optimizer, steps=10, moment=moment)
    change = weight - start
    assert change.norm() > 1e-2
    assert (change @ vectors).norm() / change.norm() < 1e-5
    assert 0 < hook.kept["router"] < 1


def test_projecting_the_gradient_does_not_protect_under_adam():
    """Why the transform is on the update: the same projector on the gradient leaks."""
    moment = InputMoment(WIDTH)
    moment.observe(task_inputs(0))
    moment.end_task()
    rule = StrictUpdate(delta=0.99)
    rule.prepare(moment, 1)
    weight = nn.Parameter(torch.zeros(EXPERTS, WIDTH))
    stepper = torch.optim.AdamW([weight], lr=1e-2)
    rows = task_inputs(1)
    loss = nn.functional.cross_entropy(rows @ weight.t(), torch.arange(len(rows)) % EXPERTS)
    loss.backward()
    weight.grad = rule.after_step(weight.grad, weight)
    stepper.step()
    vectors = rule.filter.vectors
    assert (weight.detach() @ vectors).norm() / weight.detach().norm() > 0.1


def spectra(exact=True):
    found = []
    for task in (0, 1):
        moment = InputMoment(WIDTH, **({} if exact else {"max_exact": 1, "sketch_rank": WIDTH}))
        moment.observe(task_inputs(task))
        moment.end_task()
        found.append((moment.spectrum(), moment.matrix().double()))
    return found


@pytest.mark.parametrize("exact", [True, False])
def test_relevant_directions_are_the_generalised_eigenvectors(exact):
    (old, old_matrix), (new, new_matrix) = spectra(exact)
    mu, delta = 0.05 * old.mean, 0.9
    metric = old_matrix + mu * torch.eye(WIDTH)
    lower = torch.linalg.inv(torch.linalg.cholesky(metric))
    values, vectors = torch.linalg.eigh(lower @ new_matrix @ lower.t())
    values, vectors = values.flip(0), (lower.t() @ vectors.flip(1))
    k = int((values.cumsum(0) / values.sum() < delta).sum()) + 1
    expected = mu * vectors[:, :k] @ vectors[:, :k].t()
    found = relevant_filter(old, new, mu, delta)(torch.eye(WIDTH)).double()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_all_relevant_directions_are_the_soft_rule():
    (old, _), _ = spectra()
    everywhere = InputMoment(WIDTH)
    everywhere.observe(torch.eye(WIDTH))
    mu = 0.05 * old.mean
    found = relevant_filter(old, everywhere.spectrum("current"), mu, 1.0)(torch.eye(WIDTH))
    torch.testing.assert_close(found, soft_filter(old, mu)(torch.eye(WIDTH)), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw foreach"])
def test_the_published_rule_without_its_window_is_the_plain_update(optimizer):
    plain, start, _, _ = learn(None, optimizer)
    published, _, _, _ = learn(PaperUpdate(window=1), optimizer)
    torch.testing.assert_close(published, plain, rtol=1e-3, atol=1e-5)
    windowed, _, _, _ = learn(PaperUpdate(), optimizer)
    assert score_change(windowed, start) > 0.7 * score_change(plain, start)


def test_rules_order_as_their_protection():
    changes, losses = {}, {}
    for name in ("plain", "paper", "soft", "relevant", "strict"):
        rule = ROUTER_UPDATES.build(name)
        weight, start, losses[name], _ = learn(rule, "sgd", steps=60)
        changes[name] = score_change(weight, start)
    assert max(changes[name] for name in ("strict", "soft", "relevant")) < 0.2 * min(
        changes["plain"], changes["paper"]
    )
    assert losses["plain"] < min(losses["strict"], losses["soft"]), "protection costs plasticity"


def test_first_task_is_never_touched():
    for name in ROUTER_UPDATES:
        rule = ROUTER_UPDATES.build(name)
        moment = InputMoment(WIDTH)
        rule.prepare(moment, 0)
        delta = torch.randn(EXPERTS, WIDTH)
        assert torch.equal(rule.after_step(delta, torch.zeros_like(delta)), delta), name


def test_filters_against_dense_formulas():
    moment = InputMoment(WIDTH)
    moment.observe(
        torch.randn(500, WIDTH, generator=torch.Generator().manual_seed(0)).mul(torch.arange(1, WIDTH + 1))
    )
    moment.end_task()
    c, spectrum = moment.matrix(), moment.spectrum()
    delta = torch.randn(EXPERTS, WIDTH, generator=torch.Generator().manual_seed(1))
    mu = 0.5 * spectrum.mean
    dense = mu * torch.linalg.inv(c + mu * torch.eye(WIDTH))
    torch.testing.assert_close(soft_filter(spectrum, mu)(delta), delta @ dense, rtol=1e-3, atol=1e-4)
    vectors, values = spectrum.vectors[:, :9], spectrum.values[:9]
    truncated = mu * torch.linalg.inv(vectors @ torch.diag(values) @ vectors.t() + mu * torch.eye(WIDTH))
    short = SpectralFilter(vectors, mu / (values + mu))
    torch.testing.assert_close(short(delta), delta @ truncated, rtol=1e-3, atol=1e-4)
    gains = values / trailing_mean(values, 3)
    rest = torch.eye(WIDTH) - vectors @ vectors.t()
    expected = delta @ (vectors @ torch.diag(gains) @ vectors.t() + rest)
    torch.testing.assert_close(paper_filter(spectrum, 9, 3)(delta), expected, rtol=1e-4, atol=1e-4)
    kept = spectrum.values <= 4 * spectrum.values[-1]
    projector = spectrum.vectors[:, kept] @ spectrum.vectors[:, kept].t()
    expected = delta @ projector / projector.norm()
    torch.testing.assert_close(null_ratio_filter(spectrum, 4.0)(delta), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", list(ROUTER_UPDATES))
def test_singular_moments_are_finite(name):
    """One row seen: the moment has rank one."""
    moment = InputMoment(WIDTH)
    moment.observe(torch.ones(1, WIDTH))
    moment.end_task()
    rule = ROUTER_UPDATES.build(name)
    rule.prepare(moment, 1)
    delta = torch.randn(EXPERTS, WIDTH, generator=torch.Generator().manual_seed(1))
    assert torch.isfinite(rule.after_step(delta, torch.ones_like(delta))).all()


def test_trust_rescales_inside_related_subspaces_only():
    rule, strict = TrustUpdate(threshold=0.0, related=1), StrictUpdate()
    trusting, start, _, _ = learn(rule, "sgd")
    careful, _, _, _ = learn(strict, "sgd")
    vectors = rule.subspaces[0]
    inside = ((trusting - start) @ vectors).norm()
    assert inside > 10 * ((careful - start) @ vectors).norm()
    far, _, _, _ = learn(TrustUpdate(threshold=1.0), "sgd")
    torch.testing.assert_close(far, careful)
    other = TrustUpdate()
    other.load_state(rule.state())
    assert torch.equal(other.subspaces[0], vectors)
    delta = torch.randn(EXPERTS, WIDTH)
    other.filter = rule.filter
    assert torch.equal(other.after_step(delta, start), rule.after_step(delta, start))


def test_plain_updates_are_bit_equal():
    with_hook, _, _, hook = learn(ROUTER_UPDATES.build("plain"))
    without, _, _, _ = learn(None)
    assert torch.equal(with_hook, without)
    assert hook.kept["router"] == 1


@pytest.mark.parametrize(
    "spec",
    [
        {"name": "strict", "delta": 0.0},
        {"name": "soft", "c": 0.0},
        {"name": "null_ratio", "ratio": 0.5},
        {"name": "paper", "window": 0},
        {"name": "trust", "related": -1},
        {"name": "guard", "k": 0},
        {"name": "guard", "margin": -1.0},
    ],
)
def test_bad_options(spec):
    with pytest.raises(UserError):
        ROUTER_UPDATES.build(spec)


def observed(tasks, current):
    """A moment of finished tasks, and of one under way."""
    moment = InputMoment(WIDTH)
    for task in range(tasks):
        moment.observe(task_inputs(task))
        moment.end_task()
    moment.observe(task_inputs(current))
    return moment


def test_the_published_rule_reads_old_and_current_inputs():
    moment, delta = observed(1, 1), torch.randn(EXPERTS, WIDTH, generator=torch.Generator().manual_seed(0))
    rule = PaperUpdate()
    rule.prepare(moment, 1)
    rows = torch.cat([task_inputs(0), task_inputs(1)])
    values, vectors = torch.linalg.eigh((rows.t() @ rows / len(rows)).double())
    values, vectors = values.flip(0), vectors.flip(1)
    rank = int((values.square().cumsum(0) / values.square().sum() < 0.95).sum()) + 1
    assert rank != moment.spectrum("past").rank(0.95, "sigma_sq")
    gains = values[:rank] / trailing_mean(values[:rank], 3)
    kept = vectors[:, :rank]
    dense = kept @ torch.diag(gains) @ kept.t() + torch.eye(WIDTH) - kept @ kept.t()
    torch.testing.assert_close(rule.after_step(delta, delta), (delta.double() @ dense).float())


@pytest.mark.parametrize(("task", "share"), [(1, 0.8), (2, 0.85), (3, 0.9), (4, 0.92), (40, 0.92)])
def test_the_share_that_the_strict_rule_protects_grows_with_the_task(task, share):
    moment, rule = observed(2, 5), StrictUpdate(delta=0.8, delta_max=0.92, delta_step=0.05)
    rule.prepare(moment, task)
    spectrum = moment.spectrum("past")
    assert rule.filter.vectors.shape[1] == spectrum.rank(share)
    assert spectrum.rank(0.8) < spectrum.rank(0.85) < spectrum.rank(0.92)


def test_a_share_above_the_limit_stays():
    moment, rule = observed(1, 1), StrictUpdate(delta=0.99, delta_max=0.9)
    rule.prepare(moment, 7)
    assert rule.filter.vectors.shape[1] == moment.spectrum("past").rank(0.99)
