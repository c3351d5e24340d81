"""The router as a chain: precision, modifiers, context, registry."""

import pytest
import torch

from moe_adapt.checks import check_scorer
from moe_adapt.errors import UserError
from moe_adapt.experts import ExpertBank
from moe_adapt.routing import MODIFIERS, SCORERS, GaussianNoise, Logits, RouteContext, Router, Temperature
from moe_adapt.routing.stacks import Stack


def bank(experts=4, width=8):
    return ExpertBank(torch.randn(experts, 2, width), torch.randn(3, experts, 2), scale=1.0)


def router(**parts):
    settings = {"scorer": "linear", "modifiers": [], "selector": "dense"} | parts
    return Router.build(**settings, in_features=8, num_experts=4)


# The pre-gate reads the model's embeddings and the tokens before: tests/tuner/test_cross_site.py.
@pytest.mark.parametrize("name", [name for name in SCORERS if name != "pre_gate"])
def test_registered_scorers_pass_the_public_check(name):
    check_scorer(SCORERS.get(name))


def test_routes_in_fp32_under_autocast_and_for_half_inputs():
    chain = router()
    x = torch.randn(5, 8)
    expected = chain(x, RouteContext(), bank(), "a", "s", None).gates
    with torch.autocast("cpu", dtype=torch.bfloat16):
        gates = chain(x, RouteContext(), bank(), "a", "s", None).gates
    assert gates.dtype == torch.float32
    assert torch.equal(gates, expected)
    assert chain(x.bfloat16(), RouteContext(), bank(), "a", "s", None).gates.dtype == torch.float32


def test_noise_is_for_training_only_and_drawn_once_per_visit():
    noise = GaussianNoise(std=1.0)
    logits = Logits(torch.zeros(5, 4), torch.zeros(5, 4))
    assert noise(logits, torch.zeros(5, 8), RouteContext(training=False)).select.abs().max() == 0
    context = RouteContext(training=True)
    context.enter_site("a", "s")
    first = noise(logits, torch.zeros(5, 8), context)
    assert torch.equal(first.select, noise(logits, torch.zeros(5, 8), context).select)
    assert first.select.abs().max() > 0
    assert torch.equal(first.weight, logits.weight)
    context.enter_site("a", "other")
    assert not torch.equal(first.select, noise(logits, torch.zeros(5, 8), context).select)


def test_temperature_scales_logits():
    logits = Logits(torch.ones(2, 3), torch.ones(2, 3))
    assert Temperature(2.0)(logits, torch.zeros(2, 8), RouteContext()).weight.tolist() == [[0.5] * 3] * 2
    with pytest.raises(UserError, match="positive"):
        Temperature(0.0)


def test_modifiers_run_in_order():
    chain = router(modifiers=[{"name": "temperature", "temperature": 0.5}, "temperature"])
    assert [type(part).__name__ for part in chain.modifiers] == ["Temperature", "Temperature"]
    assert "gaussian_noise" in MODIFIERS


def test_unknown_names_and_options_are_refused_with_near_names():
    with pytest.raises(UserError, match="'dynmole'"):
        router(selector="dynmol")
    with pytest.raises(UserError, match="Did you mean 'top_p'"):
        router(selector={"name": "top_p", "topp": 0.5})
    with pytest.raises(UserError, match="key 'name'"):
        router(selector={"k": 2})
    with pytest.raises(UserError, match="keeps 5 experts"):
        router(selector={"name": "top_k", "k": 5})


def test_mask_follows_the_shape_of_the_input():
    mask = torch.tensor([[0, 1, 1], [1, 1, 1]])
    context = RouteContext(stack=Stack(mask, cached=True))
    assert context.flat_mask((2, 3)).tolist() == [False, True, True, True, True, True]
    assert context.flat_mask((2, 1)).tolist() == [True, True]
    assert context.flat_mask((6,)).sum() == 5
    assert context.flat_mask((2,)) is None
    assert context.flat_mask((2, 4)) is None
