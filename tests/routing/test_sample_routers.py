"""Sample routers: sums that add up, exact removal, leave-one-out in closed form, limits that hold."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

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
    torch.testing.assert_close(parts.means[0], x.mean(0))
    torch.testing.assert_close(parts.scatter(), (x - x.mean(0)).t() @ (x - x.mean(0)))
    torch.testing.assert_close(whole.scatter(), parts.scatter())
    assert Moments.of(x[:3]).factor.shape == (2, 5), "n - 1 rows are enough"
    x[:, 0] = 1.0
    flat = Moments.of(x[:3]).scatter()
    torch.testing.assert_close(flat, (x[:3] - x[:3].mean(0)).t() @ (x[:3] - x[:3].mean(0)))


def test_moments_of_classes_add_up_class_by_class():
    x = torch.randn(19, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    keys = torch.tensor([3, -1, 3, 7, 7, -1, 3, 3, -1, 5, 7, 7, 3, -1, 3, 3, 5, 7, 3])
    whole = Moments.of(x, keys)
    parts = Moments.of(x[:4], keys[:4]) + Moments.of(x[4:9], keys[4:9]) + Moments.of(x[9:], keys[9:])
    assert whole.classes.tolist() == [-1, 3, 5, 7] and whole.counts.tolist() == [4, 8, 2, 5]
    assert torch.equal(parts.counts, whole.counts) and whole.freedom == 15
    means = torch.stack([x[keys == key].mean(0) for key in whole.classes])
    residuals = x - means[torch.searchsorted(whole.classes, keys)]
    for found in (whole, parts):
        torch.testing.assert_close(found.means, means)
        torch.testing.assert_close(found.scatter(), residuals.t() @ residuals)
    assert Moments.of(x[:4], keys[:4]).factor.shape == (1, 6), "n - C rows are enough"


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


def left_out(own, keys, shrinkage=None):
    """Leave every example out by brute force; return where it goes, and the least distance."""
    router, order = LdaRouter(shrinkage), sorted(own)
    for uid in order:
        router.observe(own[uid], uid, keys and keys[uid])
    pooled = router.pooled()
    total = sum(m.scatter() for m in router.moments.values())
    identity = torch.eye(total.shape[0], dtype=torch.float64) * total.trace() / pooled.freedom / len(total)
    went, distances = {}, []
    for uid in order:
        took = Counter()
        for i in range(len(own[uid])):
            means, owners, scatter = [], [], torch.zeros_like(total)
            for other in order:
                names = [str(k) for k in keys[other]] if keys else [""] * len(own[other])
                rows = [(n, x) for j, (n, x) in enumerate(zip(names, own[other], strict=True))
                        if other != uid or j != i]  # fmt: skip
                for name in sorted({n for n, _ in rows}):
                    x = torch.stack([x for n, x in rows if n == name]).double()
                    means.append(x.mean(0))
                    owners.append(other)
                    scatter += (x - x.mean(0)).t() @ (x - x.mean(0))
            rho = pooled.shrinkage
            u = own[uid][i].double() - torch.stack(means)
            shrunk = (1 - rho) * scatter / pooled.freedom + rho * identity
            found = (u @ torch.linalg.inv(shrunk) * u).sum(1)
            took[owners[int(found.argmin())]] += 1
            distances.append(found.min())
        went[uid] = dict(took)
    return went, torch.stack(distances)


@pytest.mark.parametrize("labelled", [False, True])
def test_leave_one_out_is_what_leaving_out_gives(labelled):
    own = examples(experts=3, rows=18, width=5, spread=0.8)
    keys = None
    if labelled:
        keys = {uid: [*"ab" * 10][: len(x)] for uid, x in own.items()}
        keys["e0"][-1] = "once"  # a class of one example is gone without it
        own = {uid: x + 2.0 * torch.tensor([[k == "a"] for k in keys[uid]]) for uid, x in own.items()}
    routes, distances = left_out(own, keys)
    found = leave_one_out(own, labels=keys)
    assert found.routes == routes and any(len(row) > 1 for row in routes.values())
    assert found.accuracy == pytest.approx(
        sum(row.get(uid, 0) / len(own[uid]) for uid, row in routes.items()) / 3
    )
    torch.testing.assert_close(found.novelty, distances)


def several(seed=0, rows=60, width=8, experts=3, classes=4):
    """Return examples of experts whose classes lie anywhere, and their labels."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(experts, classes, width, generator=generator) * 3
    labels = [i % classes for i in range(rows)]
    noise = torch.randn(experts, rows, width, generator=generator)
    own = {f"e{e}": means[e][labels] + noise[e] for e in range(experts)}
    return own, {uid: [f"class {label}" for label in labels] for uid in own}


def test_classes_have_means_of_their_own_and_find_what_one_mean_does_not():
    own, labels = several(rows=120, width=4)
    new = {uid: features[60:] for uid, features in own.items()}
    own = {uid: features[:60] for uid, features in own.items()}
    labels = {uid: told[:60] for uid, told in labels.items()}
    one, many = fitted(own=own), LdaRouter()
    for uid, features in own.items():
        many.observe(features, uid, labels[uid])
    assert many.classes == dict.fromkeys(own, 4) and many.counts == one.counts
    shape = many.rule().shape
    assert (shape.rows, shape.experts) == (12, 3)
    x, owners = torch.cat(list(new.values())), [uid for uid in new for _ in range(60)]
    found = [sum(a == b for a, b in zip(r.decide(x).names(), owners, strict=True)) for r in (one, many)]
    assert found[1] > found[0] + 20
    assert leave_one_out(own, labels=labels).accuracy > leave_one_out(own).accuracy + 0.1


def test_scores_with_classes_are_those_of_the_best_mean():
    own, labels = several(width=6)
    router = LdaRouter()
    for uid, features in own.items():
        router.observe(features, uid, None if uid == "e1" else labels[uid])
    assert router.classes == {"e0": 4, "e1": 1, "e2": 4}, "experts without labels stand beside the others"
    pooled = router.pooled()
    x = torch.randn(7, 6, generator=torch.Generator().manual_seed(5)) * 3
    u = x.double()[:, None] - pooled.means
    distances = ((u @ pooled.precision) * u).sum(-1)
    scores, novelty = router.rule()(x)
    for expert in range(3):
        best = -distances[:, pooled.owner == expert].amin(1) / 2
        first = -distances[:, pooled.owner == 0].amin(1) / 2
        torch.testing.assert_close(
            (scores[:, expert] - scores[:, 0]).double(), best - first, atol=1e-3, rtol=1e-3
        )
    limits = router.limits(pooled)[pooled.owner][distances.argmin(1)]
    torch.testing.assert_close(novelty.double(), distances.amin(1) / limits, atol=1e-3, rtol=1e-3)


def test_labels_that_are_rare_missing_or_all_the_same_change_nothing():
    own = examples()["e0"]
    plain = fitted(own={"e0": own}).state()
    for labels in (
        [str(i) for i in range(20)],
        [*"abcd" * 5],
        [*"ab" * 10],
        ["a"] * 20,
        [None, *"ab" * 9, "a"],
    ):
        router = LdaRouter()
        router.observe(own, "e0", labels)
        assert router.classes == {"e0": 1}
        assert all(torch.equal(router.state()[name], value) for name, value in plain.items())
    with pytest.raises(UserError, match="2 labels for 20 examples"):
        LdaRouter().observe(own, "e0", ["a", "b"])


def test_limits_hold_for_classes():
    own, labels = several(rows=400, width=12)
    router = LdaRouter(abstain=0.05)
    for uid, features in own.items():
        router.observe(features[:200], uid, labels[uid][:200])
    new = torch.cat([features[200:] for features in own.values()])
    assert 0.01 < router.decide(new, threshold=1.0).abstained.float().mean() < 0.1
    foreign = torch.randn(500, 12, generator=torch.Generator().manual_seed(9)) * 12
    assert router.decide(foreign, threshold=1.0).abstained.float().mean() > 0.9


@settings(max_examples=8, deadline=None)
@given(st.permutations(range(4)), st.lists(st.booleans(), min_size=4, max_size=4), st.integers(0, 3))
def test_with_classes_the_set_of_experts_decides_and_not_its_history(order, labelled, gone):
    own, labels = several(experts=4, rows=24, width=5)
    told = {uid: labels[uid] if yes else None for uid, yes in zip(own, labelled, strict=True)}
    left = [uid for number, uid in enumerate(own) if number != gone]
    plain, other, again = LdaRouter(), LdaRouter(), LdaRouter()
    for uid in left:
        plain.observe(own[uid], uid, told[uid])
    for number in order:
        other.observe(own[f"e{number}"], f"e{number}", told[f"e{number}"])
    other.remove(f"e{gone}")
    again.load(other.state())
    for found in (other, again):
        assert found.counts == plain.counts and found.classes == plain.classes
        assert found.state().keys() == plain.state().keys()
        for kept, values in (
            (found.state(), plain.state()),
            (found.rule().state_dict(), plain.rule().state_dict()),
        ):
            assert all(torch.equal(kept[key], value) for key, value in values.items())


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


@pytest.mark.parametrize("part", ["mean", "factor", "count"])
def test_statistics_that_do_not_fit_together_are_told(part):
    state = fitted(own=examples(experts=2, rows=6, width=5)).state()
    name = f"e1/{part}"
    with pytest.raises(UserError, match="'e1' do not fit together"):
        LdaRouter().load({**state, name: torch.cat([state[name].reshape(-1, 1)] * 2, dim=1)})
