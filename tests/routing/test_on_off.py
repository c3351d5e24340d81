"""On-off gates: ones exactly, and the gradient of the probabilities."""

import pytest
import torch

from moe_adapt.errors import UserError
from moe_adapt.routing import Logits, OnOffSelector, RouteContext

CONTEXT = RouteContext()


@pytest.mark.parametrize("k", [1, 3, 5, 9])
def test_gates_are_ones_for_the_k_best(k):
    logits = 20 * torch.randn(50, 5)
    gates, selected = OnOffSelector(k)(Logits(logits, logits), CONTEXT)
    kept = min(k, 5)
    assert torch.equal(gates, selected.float())
    assert torch.equal(selected.nonzero()[:, 1].view(50, kept), logits.topk(kept).indices.sort(-1).values)


def test_the_gradient_is_that_of_the_probabilities_of_what_is_on():
    weights, logits = torch.arange(5.0), torch.randn(6, 5, requires_grad=True)
    gates, selected = OnOffSelector(2)(Logits(logits, logits), CONTEXT)
    (found,) = torch.autograd.grad((gates * weights).sum(), logits)
    (expected,) = torch.autograd.grad((logits.softmax(-1) * selected * weights).sum(), logits)
    torch.testing.assert_close(found, expected)


def test_no_expert_is_refused():
    with pytest.raises(UserError, match="at least one"):
        OnOffSelector(0)
