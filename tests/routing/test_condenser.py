"""Condensing bias and the selector that keeps condensers on."""

import pytest
import torch

from moe_adapt.errors import UserError
from moe_adapt.routing import CondenseBias, CondenserSelector, Logits, RouteContext


def context(**options):
    return RouteContext(training=True, **options)


def step(modifier, logits, ctx):
    modifier(Logits(logits, logits), logits, ctx)
    modifier.after_step({name: value for (_, _, name), value in ctx.sums.items()})


def test_the_rich_get_richer():
    modifier = CondenseBias(3, gamma=0.1, usage="unbiased")
    step(modifier, torch.log(torch.tensor([[0.5, 0.3, 0.2]])), context())
    torch.testing.assert_close(modifier.bias, torch.tensor([0.1, -0.1, -0.1]))
    modifier.after_step({"usage": torch.ones(3)})
    torch.testing.assert_close(modifier.bias, torch.tensor([0.1, -0.1, -0.1]))


def test_padding_and_evaluation_do_not_count():
    logits = torch.log(torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.1, 0.8]]))
    modifier, ctx = CondenseBias(3, gamma=0.1), context(token_mask=torch.tensor([[True, False]]))
    step(modifier, logits, ctx)
    assert modifier.bias[0] > 0 > modifier.bias[2]
    evaluation = RouteContext()
    modifier(Logits(logits, logits), logits, evaluation)
    assert not evaluation.sums


def test_the_bias_moves_the_choice_and_not_the_weight():
    modifier = CondenseBias(3)
    modifier.bias.copy_(torch.tensor([0.0, 0.0, 5.0]))
    logits = torch.tensor([[1.0, 0.9, 0.0]])
    out = modifier(Logits(logits, logits), logits, RouteContext())
    assert torch.equal(out.weight, logits) and out.select.argmax() == 2
    both = CondenseBias(3, in_weight=True)
    both.bias.copy_(modifier.bias)
    assert torch.equal(both(Logits(logits, logits), logits, RouteContext()).weight, out.select)


def test_the_rarest_become_condensers_once_and_for_all():
    modifier = CondenseBias(4, condensers=2, condense_from=0.5)
    modifier.bias.copy_(torch.tensor([0.3, -0.2, -0.2, -0.1]))
    modifier.used.copy_(torch.tensor([9.0, 2.0, 1.0, 0.0]))
    logits = torch.zeros(1, 4)
    assert not modifier(Logits(logits, logits), logits, context(progress=0.4)).forced.any()
    forced = modifier(Logits(logits, logits), logits, context(progress=0.5)).forced
    assert forced.tolist() == [False, True, True, False]
    modifier.bias.copy_(torch.tensor([-1.0, 0.0, 0.0, 0.0]))
    assert torch.equal(modifier(Logits(logits, logits), logits, context(progress=0.9)).forced, forced)


FORCED = torch.tensor([False, False, True, False, False])
LOGITS = torch.log(torch.tensor([[0.4, 0.3, 0.05, 0.15, 0.1], [0.1, 0.1, 0.6, 0.1, 0.1]]))


def decide(forced=FORCED, **options):
    return CondenserSelector(k=3, **options)(Logits(LOGITS, LOGITS, forced), RouteContext())


def test_replace_keeps_the_number_of_experts_and_add_raises_it():
    assert decide().selected.tolist() == [[True, True, True, False, False]] * 2
    assert decide(budget="add").selected[0].tolist() == [True, True, True, True, False]
    assert decide(forced=None).selected[0].tolist() == [True, True, False, True, False]
    torch.testing.assert_close(decide().gates, LOGITS.exp() * decide().selected)


def test_gates_of_condensers():
    assert decide(gate="one").gates[:, 2].tolist() == [1.0, 1.0]
    twice = decide(budget="add", dedup=False).gates
    torch.testing.assert_close(twice[:, 2], torch.tensor([0.05, 1.2]))
    torch.testing.assert_close(decide(renormalize=True).gates.sum(-1), torch.ones(2))


def test_more_condensers_than_places():
    everyone = torch.ones(5, dtype=torch.bool)
    assert decide(forced=everyone).selected.all()
    assert decide(forced=everyone, budget="add").selected.all()


@pytest.mark.parametrize(
    "options",
    [{"k": 0}, {"budget": "x"}, {"gate": "x"}],
)
def test_selector_options_out_of_range(options):
    with pytest.raises(UserError):
        CondenserSelector(**options)


@pytest.mark.parametrize(
    "options",
    [{"gamma": -1.0}, {"condensers": 4}, {"condense_from": 1.5}, {"usage": "x"}],
)
def test_modifier_options_out_of_range(options):
    with pytest.raises(UserError):
        CondenseBias(4, **options)
