"""Arrow prototypes against a singular value decomposition; growing top-k."""

import pytest
import torch

from moe_adapt.errors import UserError
from moe_adapt.experts import ExpertBank
from moe_adapt.routing import ArrowScorer, GrowingTopKSelector, Logits, RouteContext
from moe_adapt.routing.scorers.arrow import top_right_singular_vectors


def bank(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, 2, 6, generator=generator), torch.randn(5, 3, 2, generator=generator)


def test_prototypes_are_the_top_right_singular_vectors():
    a, b = bank()
    found = top_right_singular_vectors(a, b)
    for expert in range(3):
        _, _, vt = torch.linalg.svd(b[:, expert] @ a[expert])
        torch.testing.assert_close((found[expert].float() @ vt[0]).abs(), torch.ones(()))
    for zero in (top_right_singular_vectors(a, b * 0), top_right_singular_vectors(a * 0, b)):
        assert not zero.any()
    a[1, 1] = 0
    assert torch.isfinite(top_right_singular_vectors(a, b)).all()


def test_scores_follow_the_routers_order():
    a, b = bank()
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    plain = ArrowScorer(temperature=0.5)(x, RouteContext(), ExpertBank(a, b, 1.0))
    stored = ExpertBank(a[[2, 0, 1]], b[:, [2, 0, 1]], 1.0, order=(2, 0, 1))
    torch.testing.assert_close(ArrowScorer(temperature=0.5)(x, RouteContext(), stored), plain)


def test_k_grows_with_the_steps():
    logits = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    kept = [
        int(
            GrowingTopKSelector(2, 8)(Logits(logits, logits), RouteContext(training=True, progress=p))
            .selected[0]
            .sum()
        )
        for p in (0.0, 0.5, 1.0)
    ]
    assert kept == [2, 5, 8]
    few = GrowingTopKSelector(2, 8, k_eval=3)(Logits(logits, logits), RouteContext(progress=0.1))
    assert (few.selected.sum(-1) == 3).all()
    with pytest.raises(UserError, match="k_min"):
        GrowingTopKSelector(3, 2)
