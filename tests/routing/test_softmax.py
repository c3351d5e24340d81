"""Softmax over short rows against PyTorch's."""

import pytest
import torch

from moe_adapt.routing.softmax import softmax


@pytest.mark.parametrize("experts", [1, 2, 8, 15, 16, 40])
def test_equals_pytorchs_with_gradient(experts):
    logits = (10 * torch.randn(3, 7, experts, dtype=torch.float64)).requires_grad_()
    weights = torch.randn_like(logits)
    torch.testing.assert_close(softmax(logits), logits.softmax(dim=-1), rtol=1e-13, atol=1e-13)
    ours, theirs = (
        torch.autograd.grad((result * weights).sum(), logits)[0]
        for result in (softmax(logits), logits.softmax(dim=-1))
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_second_derivative():
    logits = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(softmax, logits)


def test_large_and_infinite_logits_are_safe():
    assert torch.equal(softmax(torch.tensor([[1e4, 0.0]])), torch.tensor([[1.0, 0.0]]))
    assert torch.equal(softmax(torch.tensor([[-torch.inf, 3.0]])), torch.tensor([[0.0, 1.0]]))


@pytest.mark.parametrize("experts", [5, 8, 16])
@pytest.mark.parametrize("count", [1, 3, 17, 40])
def test_a_row_does_not_depend_on_the_others(experts, count):
    logits = torch.randn(67, experts)
    torch.testing.assert_close(softmax(logits)[9 : 9 + count], softmax(logits[9 : 9 + count]), rtol=0, atol=0)
