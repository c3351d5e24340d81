"""THOR's procedure: the disagreement of two passes, and the same draws when activations are recomputed."""

import pytest
import torch
from torch.nn import functional as F

from moe_adapt.checks import CheckedClassifier, check_procedure
from moe_adapt.checks.procedures import toy_batches
from moe_adapt.errors import UserError
from moe_adapt.training.procedures import PROCEDURES, TwoPass
from moe_adapt.training.procedures.two_pass import symmetric_kl
from moe_adapt.tuner import RoutedLoraConfig


def thor(**scorer):
    sites = {"target_modules": ["query", "dense"], "exclude_modules": ".*pooler.*", "dropout": 0.0}
    return RoutedLoraConfig(method="thor", num_experts=4, r=2, scorer={"name": "random", **scorer}, **sites)


def quiet(module):
    """Without dropout, and without a trainer to log to."""
    module.log = lambda *_, **__: None
    for part in module.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    return module.train()


def test_disagreement_is_symmetric_zero_on_equal_and_the_mean_of_both_divergences():
    generator = torch.Generator().manual_seed(0)
    one, two = (torch.randn(5, 7, generator=generator) for _ in range(2))
    log_p, log_q = one.log_softmax(-1), two.log_softmax(-1)
    both = [F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)]
    both += [F.kl_div(log_p, log_q, reduction="batchmean", log_target=True)]
    torch.testing.assert_close(symmetric_kl(one, two), sum(both) / 2)
    torch.testing.assert_close(symmetric_kl(one, two), symmetric_kl(two, one))
    assert symmetric_kl(one, one) == 0 and symmetric_kl(one, one + 3.0).abs() < 1e-6


def test_without_alpha_and_with_the_same_expert_it_is_twice_the_cross_entropy():
    module, batch = quiet(CheckedClassifier(tuner=thor())), toy_batches(1)[0]
    torch.manual_seed(5)
    once = module.task_loss(batch)
    torch.manual_seed(5)
    drawn = torch.get_rng_state()
    original = module.scored

    def same_draw(batch):
        torch.set_rng_state(drawn)
        return original(batch)

    module.scored = same_draw
    torch.testing.assert_close(TwoPass(alpha=0.0).step(module, batch), 2 * once)
    torch.testing.assert_close(TwoPass(alpha=1.0).step(module, batch), 2 * once)


def test_two_draws_disagree_and_alpha_weighs_that():
    module, batch = quiet(CheckedClassifier(tuner=thor())), toy_batches(1)[0]
    losses = {}
    for alpha in (0.0, 1.0, 3.0):
        torch.manual_seed(1)
        losses[alpha] = float(TwoPass(alpha).step(module, batch).detach())
    assert losses[1.0] > losses[0.0] + 1e-4
    assert losses[3.0] - losses[0.0] == pytest.approx(3 * (losses[1.0] - losses[0.0]))


def test_passes_the_public_check_so_that_draws_are_the_same_under_recomputation():
    check_procedure(TwoPass, thor(level="sequence"))


def test_alpha_makes_random_experts_agree():
    batch, apart = toy_batches(1)[0], {}
    for alpha in (0.0, 20.0):
        module = quiet(CheckedClassifier(tuner=thor()))
        optimizer = torch.optim.Adam([p for p in module.parameters() if p.requires_grad], lr=1e-2)
        for step in range(20):
            torch.manual_seed(step)
            TwoPass(alpha).step(module, batch).backward()
            optimizer.step()
            optimizer.zero_grad()
        torch.manual_seed(7)
        with torch.no_grad():
            apart[alpha] = float(symmetric_kl(module.scored(batch)[1], module.scored(batch)[1]))
    assert apart[20.0] < 0.5 * apart[0.0]


def test_options():
    assert PROCEDURES.build({"name": "two_pass", "alpha": 2.0}).settings() == {
        "name": "two_pass",
        "alpha": 2.0,
    }
    with pytest.raises(UserError, match="not negative"):
        TwoPass(alpha=-1.0)
