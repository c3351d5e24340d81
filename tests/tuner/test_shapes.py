"""Odd shapes through a whole adapter: one token, none, one output, rank one, experts that divide nothing."""

import peft
import pytest
import torch
from torch import nn

from moe_adapt.tuner import RoutedLoraConfig
from tests.tuner.tiny import randomize

METHODS = {
    "soft": {},
    "top_k": {},
    "top_p": {},
    "dynmole": {},
    "ld_mole": {},
    "adamoe": {"selector": {"name": "null_experts", "k": 2, "nulls": 3}},
    "condenser": {},
    "cosine": {},
    "k_means": {},
    "hydralora": {},
}


class One(nn.Module):
    def __init__(self, out: int) -> None:
        super().__init__()
        self.proj = nn.Linear(7, out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj(x)


def routed(method, out, **options):
    torch.manual_seed(0)
    shape = {"num_experts": 5, "r": 1, "alpha": 1.0, "dropout": 0.0, "target_modules": ["proj"]}
    model = peft.get_peft_model(
        One(out), RoutedLoraConfig(method=method, **shape | METHODS[method] | options)
    )
    randomize(model)
    return model


@pytest.mark.parametrize("tokens", [0, 1, 3])
@pytest.mark.parametrize("method", METHODS)
def test_any_shape_works(method, tokens):
    model = routed(method, out=1).eval()
    x = torch.randn(tokens, 7, requires_grad=True)
    layer = model.base_model.model.proj
    with model.base_model.record():
        y = model(x)
    (record,) = model.base_model.hooks.session.context.records.values()
    bank = layer.bank("default")
    expected = layer.base_layer(x)
    for expert in range(5):
        expected = expected + record.gates[:, expert, None] * (x @ bank.delta_weight(expert).t())
    assert y.shape == (tokens, 1)
    torch.testing.assert_close(y, expected)
    model.train()(x).sum().backward()
    assert torch.isfinite(x.grad).all()


def test_a_token_without_experts_keeps_the_base_output_bit_for_bit():
    model = routed("adamoe", out=4).eval()
    layer = model.base_model.model.proj
    rows = layer.moe_adapt_router__scorer__weight["default"]
    with torch.no_grad():
        rows.zero_()
        rows[5:, 0] = 1.0
    x = torch.randn(6, 7)
    x[:, 0] = torch.tensor([1.0, -1.0]).repeat(3)
    y, base = model(x), layer.base_layer(x)
    assert torch.equal(y[::2], base[::2])
    assert not torch.equal(y[1::2], base[1::2])
