"""Sample routers: sums that add up, exact removal, leave-one-out in closed form, limits that hold."""

from collections import Counter

import pytest
import torch

from moe_adapt.errors import UserError
from moe_adapt.routing.sample import (
    SAMPLE_ROUTERS,
    LdaRouter,
    Moments,
    PrototypeSampleRouter,
    SampleRoutes,
    leave_one_out,
)
from moe_adapt.routing.sample.lda import oas
from moe_adapt.routing.sample.routes import decide


def examples(experts=4, rows=20, width=12, spread=2.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(experts, width, generator=generator) * spread
    return {f"e{i}": means[i] + torch.randn(rows + i, width, generator=generator) for i in range(experts)}


def fitted(name="lda", own=None, **options):
    router = SAMPLE_ROUTERS.build({"name": name, **options})
    for uid, features in (own or examples()).items():
        router.observe(features, uid)
    return router


def test_moments_add_up():
    x = torch.randn(17, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    parts = Moments.of(x[:3]) + Moments.of(x[3:4]) + Moments.of(x[4:])
    whole = Moments.of(x)
    assert parts.count == 17 and parts.factor.shape == (5, 5)
    torch.testing.assert_close(parts.mean, x.mean(0))
    torch.testing.assert_close(parts.scatter(), (x - x.mean(0)).t() @ (x - x.mean(0)))
    torch.testing.assert_close(whole.scatter(), parts.scatter())
    assert Moments.of(x[:3]).factor.shape == (2, 5), "n - 1 rows are enough"


def test_oracle_shrinkage_follows_its_formula():
    covariance = torch.diag(torch.tensor([4.0, 1.0, 1.0], dtype=torch.float64))
    above = (1 - 2 / 3) * 18 + 36
    assert oas(covariance, 20) == pytest.approx(above / ((21 - 2 / 3) * (18 - 12)))


def test_scores_are_those_of_the_discriminants():
    own = examples()
    router, x = fitted(own=own), torch.randn(6, 12, generator=torch.Generator().manual_seed(3))
    pooled = router.pooled()
    m, p, x64 = pooled.means, pooled.precision, x.double()
    exact = x64 @ p @ m.t() - (m @ p * m).sum(1) / 2
    scores, novelty = router.rule()(x)
    torch.testing.assert_close(scores - scores[:, :1], (exact - exact[:, :1]).float(), atol=1e-3, rtol=1e-4)
    u = x64[:, None] - m
    distances = ((u @ p) * u).sum(-1)
    nearest = distances.argmin(1)
    expected = distances.amin(1) / router.limits(pooled)[nearest]
    torch.testing.assert_close(novelty.double(), expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", ["lda", "prototype", "trained"])
def test_the_set_of_experts_decides_and_not_its_history(name):
    own = examples()
    plain = fitted(name, {uid: own[uid] for uid in ("e0", "e2", "e3")})
    other = SAMPLE_ROUTERS.build(name)
    for uid in ("e3", "e1", "e2", "e0"):
        other.observe(own[uid], uid)
    other.remove("e1")
    again = SAMPLE_ROUTERS.build(name)
    again.load(other.state())
    for found in (other, again):
        assert found.counts == plain.counts
        for key, tensor in plain.rule().state_dict().items():
            assert torch.equal(found.rule().state_dict()[key], tensor)


@pytest.mark.parametrize("name", ["lda", "prototype", "trained"])
def test_examples_find_their_expert_and_mistakes_are_told(name):
    own = examples(spread=4.0)
    router = fitted(name, own)
    for uid, features in own.items():
        assert router.decide(features).names() == [uid] * len(features)
    with pytest.raises(UserError, match="no expert 'e9'"):
        router.remove("e9")
    with pytest.raises(UserError, match="at least one"):
        router.observe(torch.zeros(0, 12), "new")
    with pytest.raises(UserError, match="no expert yet"):
        SAMPLE_ROUTERS.build(name).rule()


def test_one_example_each_is_the_nearest_mean():
    router = fitted(own={"a": torch.tensor([[1.0, 0.0]]), "b": torch.tensor([[0.0, 1.0]])})
    assert router.decide(torch.tensor([[0.9, 0.2], [0.1, 0.4]])).names() == ["a", "b"]
    assert not router.can_abstain()


def test_leave_one_out_is_what_leaving_out_gives():
    own = examples(experts=3, rows=6, width=5, spread=0.8)
    fitted_all = fitted(own=own)
    shrinkage, freedom = fitted_all.pooled().shrinkage, fitted_all.pooled().freedom
    right, routes = [], {}
    level = fitted_all.pooled()
    covariance = sum(m.scatter() for m in fitted_all.moments.values()) / freedom
    identity = torch.eye(5, dtype=torch.float64) * covariance.trace() / 5
    for place, (uid, features) in enumerate(sorted(own.items())):
        went = Counter()
        for i in range(len(features)):
            rest = Moments.of(torch.cat([features[:i], features[i + 1 :]]))
            scatter = covariance * freedom - fitted_all.moments[uid].scatter() + rest.scatter()
            shrunk = (1 - shrinkage) * scatter / freedom + shrinkage * identity
            means = level.means.clone()
            means[place] = rest.mean
            u = features[i].double() - means
            distances = (u @ torch.linalg.inv(shrunk) * u).sum(1)
            went[sorted(own)[int(distances.argmin())]] += 1
        right.append(went[uid] / len(features))
        routes[uid] = dict(went)
    found = leave_one_out(own)
    assert found.accuracy == pytest.approx(sum(right) / 3)
    assert found.routes == routes and any(len(row) > 1 for row in routes.values())


def test_limits_hold_about_the_share_that_was_asked_for():
    generator = torch.Generator().manual_seed(1)
    mix = torch.randn(24, 24, generator=generator) / 5
    means = torch.randn(4, 24, generator=generator) * 2
    draw = lambda i, n: means[i] + torch.randn(n, 24, generator=generator) @ mix  # noqa: E731
    router = fitted(own={f"e{i}": draw(i, 200) for i in range(4)}, abstain=0.05)
    own = torch.cat([draw(i, 500) for i in range(4)])
    assert 0.01 < router.decide(own, threshold=1.0).abstained.float().mean() < 0.1
    foreign = torch.randn(500, 24, generator=generator) * 3
    assert router.decide(foreign, threshold=1.0).abstained.float().mean() > 0.9


def test_known_experts_win_and_repeats_stand_next_to_each_other():
    routes = decide(torch.tensor([[5.0, 0.0], [5.0, 0.0]]), torch.zeros(2), known=torch.tensor([1, -1]))
    assert routes.index.tolist() == [[1], [0]] and routes.posterior[0].isnan().all()
    assert routes.repeated(6).index.flatten().tolist() == [1, 1, 1, 0, 0, 0]
    with pytest.raises(UserError, match="3 rows"):
        routes.repeated(3)
    soft = decide(torch.tensor([[0.0, 0.0]]), torch.zeros(1), k=0)
    assert isinstance(soft, SampleRoutes) and soft.dense().tolist() == [[0.5, 0.5]]


def test_bad_options():
    for make in (
        lambda: LdaRouter(2.0),
        lambda: LdaRouter(abstain=0.0),
        lambda: PrototypeSampleRouter(0),
        lambda: SAMPLE_ROUTERS.build({"name": "trained", "penalty": -1}),
    ):
        with pytest.raises(UserError):
            make()
    router = fitted(own={"a": torch.zeros(2, 3)})
    with pytest.raises(UserError, match="3"):
        router.observe(torch.zeros(2, 4), "b")
    with pytest.raises(UserError, match="not finite"):
        router.observe(torch.full((2, 3), torch.nan), "b")
