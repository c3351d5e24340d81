"""Parts for pools of experts: normalised router, growing candidates, scores as gates, balance of the pool."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moe_adapt.errors import UserError
from moe_adapt.routing import AUX_LOSSES, MODIFIERS, SELECTORS, Logits, RouteContext
from moe_adapt.routing.modifiers.norm_router import norm_scale
from moe_adapt.routing.records import RoutingRecord, group_records

X = torch.zeros(6, 4)


def logits_of(values):
    return Logits(values, values)


@pytest.mark.parametrize(
    ("experts", "k", "expected"),
    [(4, 1, 1.61), (8, 1, 1.83), (8, 2, 1.54), (16, 2, 1.75), (32, 2, 2.09), (64, 8, 1.69), (96, 1, 3.88)],
)
def test_the_scale_of_the_norm_router(experts, k, expected):
    assert norm_scale(experts, k) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("experts", [2, 4, 8, 16, 64])
def test_the_scale_gives_scores_a_mean_square_of_one(experts):
    z = torch.randn(20_000, experts, generator=torch.Generator().manual_seed(0))
    z = z[(z > 0).any(dim=1)]
    router = MODIFIERS.build({"name": "norm_router", "k": 2}, in_features=4, num_experts=experts)
    scores = router(logits_of(z), X, RouteContext()).weight.detach()
    share = 1 - 0.5**experts  # tokens without a positive logit count as zero in the mean
    assert math.isfinite(router.constant)
    assert float(scores.topk(2).values.square().sum(dim=1).mean()) * share == pytest.approx(1, rel=0.03)


@given(factor=st.floats(0.01, 100.0), seed=st.integers(0, 99))
def test_the_norm_router_does_not_see_the_length_of_logits(factor, seed):
    z = torch.randn(5, 8, generator=torch.Generator().manual_seed(seed))
    z[:, 0] = z[:, 0].abs() + 0.1
    router = MODIFIERS.build("norm_router", in_features=4, num_experts=8)
    one, other = (router(logits_of(scale * z), X, RouteContext()).weight for scale in (1.0, factor))
    torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)


def test_masked_experts_count_nothing_and_are_never_selected():
    z = torch.tensor([[3.0, 4.0, -torch.inf, -2.0], [-1.0, -torch.inf, -2.0, -3.0]])
    router = MODIFIERS.build("norm_router", in_features=4, num_experts=4)
    selector = SELECTORS.build("score_top_k", in_features=4, num_experts=4)
    scores = router(logits_of(z), X, RouteContext())
    expected = router.constant * torch.tensor([3.0, 4.0]) / 29**0.5
    torch.testing.assert_close(scores.weight[0, :2], expected)
    decision = selector(scores, RouteContext())
    assert decision.selected.tolist() == [[False, True, False, False], [True, False, False, False]]
    assert torch.equal(decision.gates > 0, decision.selected)  # the second token falls back to a softmax


def test_scores_that_are_not_positive_select_nobody():
    decision = SELECTORS.build("score_top_k", in_features=4, num_experts=3)(
        logits_of(torch.tensor([[0.0, -1.0, 0.0], [0.5, 0.7, 0.0]])), RouteContext()
    )
    assert decision.gates.tolist() == [[0, 0, 0], [0, pytest.approx(0.7), 0]]


def test_the_number_of_candidates():
    grow = MODIFIERS.build(
        {"name": "growing_candidates", "reuse": 3, "start": 0.2, "end": 0.6}, in_features=4, num_experts=12
    )
    counts = {0.0: 4, 0.2: 4, 0.3: 6, 0.39: 7, 0.4: 8, 0.5: 10, 0.6: 12, 1.0: 12}
    assert {t: grow.count(t) for t in counts} == counts


def test_candidates_are_masked_even_if_all_scores_are_negative():
    grow = MODIFIERS.build("growing_candidates", in_features=4, num_experts=8)
    select = SELECTORS.build({"name": "top_k", "k": 4}, in_features=4, num_experts=8)
    z = -1 - torch.rand(6, 8)
    context = RouteContext(training=True, progress=0.0)
    context.enter_site("default", "a")
    masked = grow(logits_of(z), X, context)
    kept = masked.select > -torch.inf
    assert kept.sum(dim=1).tolist() == [4] * 6 and torch.equal(kept, kept[:1].expand_as(kept))
    assert torch.equal(grow(logits_of(z), X, context).select, masked.select)  # one draw per forward
    assert torch.equal(select(masked, context).selected, kept)
    assert grow(logits_of(z), X, RouteContext(progress=0.0)).select is z  # evaluation draws nothing


@pytest.mark.parametrize("options", [{"reuse": 3}, {"start": 0.5, "end": 0.5}, {"end": 1.5}])
def test_candidates_that_do_not_fit(options):
    with pytest.raises(UserError, match="growing_candidates"):
        MODIFIERS.build({"name": "growing_candidates"} | options, in_features=4, num_experts=8)


def record(site, pool, seed, mask=None):
    z = torch.randn(6, 4, generator=torch.Generator().manual_seed(seed))
    selected = torch.zeros(6, 4, dtype=torch.bool).scatter_(1, z.topk(2).indices, True)
    return RoutingRecord(site, z, z.softmax(-1), selected, mask, pool=pool)


def test_the_losses_of_sites_add_up_to_that_of_the_pool():
    mask = torch.tensor([True] * 4 + [False] * 2)
    records = [record(f"s{i}", "0" if i < 3 else None, i, mask) for i in range(4)]
    groups = [group for group, _ in group_records(records)]
    loss = AUX_LOSSES.build("pool_balance")
    found = loss(groups)

    def share(one):
        return one.selected[mask].float().mean(0) / 2

    def probs(one):
        return one.logits[mask].softmax(-1).mean(0)

    mean_share = torch.stack([share(one) for one in records[:3]]).mean(0)
    by_site = [4 * mean_share @ probs(one) / 3 for one in records[:3]]
    alone = 4 * share(records[3]) @ probs(records[3])
    torch.testing.assert_close(found, (sum(by_site) + alone) / 2)
    found.backward()
    assert float(groups[0].logits.grad[:, mask].abs().min()) > 0
    assert float(groups[0].logits.grad[:, ~mask].abs().max()) == 0
