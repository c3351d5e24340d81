"""Entropy values, limits and gradients."""

import math

import pytest
import torch

from moe_adapt.errors import UserError
from moe_adapt.routing.entropy import check_entropy, renyi_entropy, routing_entropy, tsallis_entropy


@pytest.mark.parametrize(
    ("probs", "expected"),
    [
        ((0.5, 0.3, 0.15, 0.05), 0.8218),
        ((0.3, 0.3, 0.2, 0.2), 0.9851),
        ((0.7, 0.1, 0.1, 0.1), 0.6661),
        ((0.9, 0.05, 0.03, 0.02), 0.2914),
    ],
)
def test_values_at_order_1_1(probs, expected):
    assert tsallis_entropy(torch.tensor(probs), q=1.1).item() == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize("q", [0.5, 1.0, 1.1, 2.0])
@pytest.mark.parametrize("experts", [2, 6, 8])
def test_uniform_is_one_and_one_hot_is_zero(q, experts):
    uniform = torch.full((experts,), 1 / experts, dtype=torch.float64)
    one_hot = torch.eye(experts, dtype=torch.float64)[0]
    assert tsallis_entropy(uniform, q).item() == pytest.approx(1)
    assert tsallis_entropy(one_hot, q).item() == pytest.approx(0, abs=1e-12)


def test_approaches_shannon():
    probs = torch.rand(20, 5, dtype=torch.float64).softmax(-1)
    near = tsallis_entropy(probs, 1 + 1e-7, normalize=False)
    torch.testing.assert_close(near, tsallis_entropy(probs, 1.0, normalize=False), rtol=1e-5, atol=1e-6)


def test_gradient_of_shannon_with_respect_to_logits():
    logits = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    probs = logits.softmax(-1)
    entropy = tsallis_entropy(probs, 1.0, normalize=False)
    (grad,) = torch.autograd.grad(entropy.sum(), logits)
    expected = -probs * (probs.log() + entropy.unsqueeze(-1))
    torch.testing.assert_close(grad, expected, rtol=1e-12, atol=1e-14)


def test_gradient_of_tsallis_with_respect_to_logits():
    q = 1.1
    logits = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    probs = logits.softmax(-1)
    (grad,) = torch.autograd.grad(tsallis_entropy(probs, q, normalize=False).sum(), logits)
    a = -q * probs ** (q - 1) / (q - 1)
    torch.testing.assert_close(grad, probs * (a - (a * probs).sum(-1, keepdim=True)), rtol=1e-10, atol=1e-12)


def test_one_expert_has_no_entropy():
    assert tsallis_entropy(torch.ones(3, 1), 1.1).tolist() == [0, 0, 0]


def test_large_banks_stay_normalised():
    assert tsallis_entropy(torch.full((64,), 1 / 64), 1.1).item() == pytest.approx(1, abs=1e-5)
    assert math.isfinite(tsallis_entropy(torch.full((2,), 0.5), 1.0).item())


def test_order_must_be_positive():
    with pytest.raises(UserError, match="order q"):
        check_entropy(0)


@pytest.mark.parametrize("q", [0.5, 1.0, 1.1, 2.0])
def test_renyi_is_the_logarithm_of_the_same_sum(q):
    probs = torch.tensor([0.5, 0.3, 0.2, 0.0], dtype=torch.float64)
    if q == 1:
        expected = -(probs[:3] * probs[:3].log()).sum() / math.log(4)
    else:
        expected = (probs[:3] ** q).sum().log() / (1 - q) / math.log(4)
    assert renyi_entropy(probs, q).item() == pytest.approx(expected.item())
    uniform = torch.full((4,), 0.25, dtype=torch.float64)
    assert routing_entropy(uniform, q, "renyi").item() == pytest.approx(1)


def test_zeros_have_finite_gradients():
    for q in (0.5, 1.0, 2.0):
        for kind in ("tsallis", "renyi"):
            probs = torch.tensor([0.6, 0.4, 0.0], requires_grad=True)
            (gradient,) = torch.autograd.grad(routing_entropy(probs, q, kind), probs)
            assert torch.isfinite(gradient).all() and gradient[2] == 0


def test_an_unknown_kind_is_refused():
    with pytest.raises(UserError, match="'tsallis' or 'renyi'"):
        check_entropy(1.1, "shannon")
