"""MoE-GRPO: rollouts with sampled experts; ratio 1 and zero-mean advantages at the first update."""

import pytest
import torch

from moe_adapt.checks import CheckedClassifier, check_procedure
from moe_adapt.checks.procedures import toy_batches
from moe_adapt.checks.routing import check_selector
from moe_adapt.errors import UserError
from moe_adapt.routing import Logits, RecordGroup, RouteContext, RoutingRecord, SampledSelector
from moe_adapt.training.procedures import GatePolicy
from moe_adapt.training.procedures.gate_policy import GateRatio, advantages, clipped
from moe_adapt.tuner import RoutedLoraConfig


def sampling():
    sites = {"target_modules": ["query", "dense"], "exclude_modules": ".*pooler.*", "dropout": 0.0}
    return RoutedLoraConfig(method="gate_policy", num_experts=4, r=2, **sites)


def toy():
    module = CheckedClassifier(tuner=sampling())
    module.log = lambda *_, **__: None
    for part in module.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    return module.train(), toy_batches(1)[0]


def group(logits, selected):
    """The decisions of one site."""
    return RecordGroup([RoutingRecord("site", logits, selected.float(), selected, None)])


def test_advantages_sum_to_zero_in_every_group_and_are_zero_where_all_are_equal():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 1.0]])
    found = advantages(rewards)
    torch.testing.assert_close(found.sum(dim=1), torch.zeros(3), atol=1e-5, rtol=0)
    assert torch.equal(found[1], torch.zeros(4))
    torch.testing.assert_close(found[0], torch.tensor([1.0, -1.0, -1.0, 1.0]), rtol=1e-3, atol=0)


def test_ratios_are_clipped_where_they_would_pay():
    ratio = torch.tensor([0.5, 1.0, 2.0])
    torch.testing.assert_close(clipped(ratio.log(), torch.tensor(1.0), 0.2), torch.tensor([0.5, 1.0, 1.2]))
    torch.testing.assert_close(
        clipped(ratio.log(), torch.tensor(-1.0), 0.2), torch.tensor([-0.8, -1.0, -2.0])
    )


def test_the_first_update_has_ratio_one_and_no_value_and_pushes_towards_what_paid():
    module, batch = toy()
    policy = GatePolicy(rollouts=8)
    torch.manual_seed(0)
    rows, answer, old, reward = policy.rollout(module, batch)
    session = module.tuner.hooks.session
    drawn = {key: record.selected for key, record in session.context.records.items()}
    before = module.tuner.recorded()
    worth = advantages(reward.view(-1, 8)).flatten()
    assert worth.abs().sum() > 0
    with session.replaying(drawn):
        log_p = module.scored(rows)[1].log_softmax(-1)
    for one, two in zip(before, module.tuner.recorded(), strict=True):
        assert torch.equal(one.selected, two.selected)
        torch.testing.assert_close(one.logits, two.logits)
    torch.testing.assert_close(log_p.gather(1, answer[:, None])[:, 0], old)
    loss = GateRatio(before, worth, clip=0.2, weight=1.0)
    assert loss(module.tuner.recorded()).abs() < 1e-6
    groups = module.tuner.recorded()
    gradients = torch.autograd.grad(loss(groups), [group.logits for group in groups])
    chosen = worth.repeat_interleave(groups[0].logits.shape[1] // len(worth))
    up = (gradients[0] * groups[0].selected).sum(-1)[0]
    assert (up[chosen > 0] <= 0).all() and (up[chosen < 0] >= 0).all()


def test_sampled_experts_follow_the_probabilities_and_evaluation_takes_the_best():
    check_selector(SampledSelector(k=2))
    logits = torch.log(torch.tensor([0.1, 0.2, 0.3, 0.4])).expand(20_000, 4)
    torch.manual_seed(0)
    context = RouteContext(training=True)
    selected = SampledSelector(k=1)(Logits(logits, logits), context).selected
    assert torch.equal(SampledSelector(k=1)(Logits(logits, logits), context).selected, selected)
    share = selected.float().mean(dim=0)
    torch.testing.assert_close(share, torch.tensor([0.1, 0.2, 0.3, 0.4]), atol=0.015, rtol=0)
    best = SampledSelector(k=2)(Logits(logits[:1], logits[:1]), RouteContext()).selected
    assert best.tolist() == [[False, False, True, True]]


def test_passes_the_public_check():
    check_procedure(lambda: GatePolicy(rollouts=3, updates=2), sampling())


def test_a_toy_reward_rises_through_the_gates_alone():
    """A bandit: of four experts one is right, and only the router's probabilities can learn that."""
    weight = torch.zeros(4, requires_grad=True)
    optimizer, selector = torch.optim.Adam([weight], lr=0.1), SampledSelector(k=1)
    torch.manual_seed(0)
    for _ in range(40):
        logits = weight.detach().expand(64, 4)
        selected = selector(Logits(logits, logits), RouteContext(training=True)).selected
        worth = advantages(selected[:, 2].float().view(8, 8)).flatten()
        loss = GateRatio([group(logits, selected)], worth, clip=0.2, weight=1.0)
        for _ in range(2):
            loss([group(weight.expand(64, 4), selected)]).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert weight.softmax(0)[2] > 0.9


def test_who_does_not_draw_experts_is_refused():
    with pytest.raises(UserError, match="selector to"):
        GatePolicy().check(CheckedClassifier())
    with pytest.raises(UserError, match="at least 2 rollouts"):
        GatePolicy(rollouts=1)
    GatePolicy().check(CheckedClassifier(tuner=sampling()))
