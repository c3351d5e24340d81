"""Closed-form heads: equal to themselves after any split of their data, and to plain references."""

import copy
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_adapt.errors import UserError
from moe_adapt.learners import heads
from moe_adapt.learners.heads import (
    FeCamHead,
    NearestMeanHead,
    RanPacHead,
    RidgeHead,
    SldaHead,
    WhitenedMeanHead,
    cross_validated_cosines,
    ridge_path_errors,
)

WIDTH = 6
HEADS = dict(
    ncm=NearestMeanHead,
    slda=SldaHead,
    ridge=RidgeHead,
    ranpac=RanPacHead,
    fecam=FeCamHead,
    whitened=WhitenedMeanHead,
)
#: Heads that do not depend on the order of their data.
EXACT = {
    "ncm": {},
    "ncm, directions": {"name": "ncm", "normalize_first": True},
    "slda": {},
    "ridge": {"lam": 0.3},
    "ridge, bias": {"name": "ridge", "lam": 0.3, "bias": True},
    "ranpac": {"lam": 0.3, "proj_dim": 15},
    "fecam": {},
    "fecam, shared": {"name": "fecam", "shared": True},
    "whitened": {},
    "whitened, two layers": {"name": "whitened", "layers": 2, "shrinkage": "oas"},
}


def made(options):
    """Return the head of options with its ``name``."""
    arguments = {"width": WIDTH, **options}
    return HEADS[arguments.pop("name")](**arguments)


def build(name):
    return made({"name": name, **EXACT[name]})


def data(samples=60, classes=4, width=WIDTH, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, width, generator=generator, dtype=torch.float64)
    labels = torch.arange(samples) % classes
    noise = torch.randn(samples, width, generator=generator, dtype=torch.float64)
    return centres[labels] + 0.5 * noise + 0.2, labels


def state(head):
    return {name: value.double() for name, value in head.state_dict().items()}


def assert_same(ours, theirs, tolerance=1e-10):
    torch.testing.assert_close(state(ours), state(theirs), rtol=tolerance, atol=tolerance)


def test_every_head_is_tested():
    public = {getattr(heads, name) for name in heads.__all__}
    known = {found for found in public if isinstance(found, type)} - {heads.ClosedFormHead, heads.LinearHead}
    assert known == set(HEADS.values())


@pytest.mark.parametrize("name", EXACT)
@settings(max_examples=15)
@given(seed=st.integers(0, 1000), cuts=st.lists(st.integers(0, 60), max_size=4))
def test_batches_and_order_do_not_matter(name, seed, cuts):
    features, labels = data()
    whole, split = build(name), build(name)
    whole.update(features, labels)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(seed))
    edges = [0, *sorted(cuts), 60]
    for start, stop in pairwise(edges):
        part = order[start:stop]
        split.update(features[part], labels[part])
    assert_same(whole, split)
    torch.testing.assert_close(whole(features), split(features), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"name": "ncm"},
        {"name": "slda"},
        {"name": "slda", "rule": "streaming"},
        {"name": "ridge"},
        {"name": "ranpac", "proj_dim": 40},
        {"name": "fecam"},
        {"name": "fecam", "shared": True},
        {"name": "whitened"},
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "change", [(1.0, 0.0), (1.0, 1e4), (1e19, 0.0), (1e-15, 0.0), (1e-15, 1e4), (1e-8, 1e4), (1e15, 1e4)]
)
@settings(max_examples=2)
@given(seed=st.integers(0, 20))
def test_scale_and_offset_do_not_change_an_easy_problem(options, seed, change):
    factor, offset = change
    noise = torch.randn(200, WIDTH, generator=torch.Generator().manual_seed(seed))
    labels = torch.arange(200) % 4
    features = ((6 * torch.eye(4, WIDTH)[labels] + 0.3 * noise + offset) * factor).float()
    head = made(options)
    head.update(features[:90], labels[:90])
    head.update(features[90:], labels[90:])
    head.end_task(features, labels)
    scores = head(features)
    assert torch.isfinite(scores).all()
    assert torch.equal(scores.argmax(1), labels)


@pytest.mark.parametrize("name", EXACT)
def test_merging_equals_seeing_both_parts(name):
    features, labels = data()
    whole, first, second = build(name), build(name), build(name)
    whole.update(features, labels)
    early = labels < 2
    few = torch.cat([early.nonzero().squeeze(1), (~early).nonzero().squeeze(1)[:3]])
    rest = torch.ones(60, dtype=torch.bool).index_fill(0, few, False)
    first.update(features[few], labels[few])
    second.update(features[rest], labels[rest])
    kept = copy.deepcopy(second)
    first.merge(second)
    assert_same(first, whole)
    assert_same(second, kept)


@pytest.mark.parametrize("name", EXACT)
def test_state_grows_on_loading(name):
    features, labels = data()
    trained, fresh = build(name), build(name)
    trained.update(features, labels)
    fresh.update(features[labels == 0], labels[labels == 0])
    fresh.load_state_dict(trained.state_dict())
    assert torch.equal(fresh(features), trained(features))
    more = data(seed=1)
    fresh.update(*more)
    trained.update(*more)
    assert_same(fresh, trained, 0.0)


@pytest.mark.parametrize("name", EXACT)
def test_scores_do_not_depend_on_the_batch_and_leave_the_state_alone(name):
    features, labels = data()
    head = build(name)
    head.update(features, labels)
    before = copy.deepcopy(head.state_dict())
    together = head(features.float())
    alone = torch.cat([head(row.unsqueeze(0)) for row in features.float()])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(head.state_dict(), before, rtol=0, atol=0)
    assert (together.argmax(1) == labels).float().mean() > 0.8


@pytest.mark.parametrize("name", EXACT)
def test_a_class_that_returns_is_merged_and_a_gap_is_never_predicted(name):
    features, labels = data(classes=3)
    labels = torch.tensor([0, 2, 4])[labels]
    whole, parts = build(name), build(name)
    whole.update(features, labels)
    for part in (labels == 4, labels != 4):
        parts.update(features[part][::2], labels[part][::2])
        parts.update(features[part][1::2], labels[part][1::2])
    assert_same(whole, parts)
    assert whole(features).shape == (60, 5)
    assert torch.isneginf(whole(features)[:, [1, 3]]).all()


@pytest.mark.parametrize("name", EXACT)
def test_bad_batches_leave_the_head_as_it_was(name):
    head = build(name)
    with pytest.raises(UserError, match="no data yet"):
        head(torch.ones(1, WIDTH))
    head.update(*data())
    before = copy.deepcopy(head.state_dict())
    labels = torch.zeros(2, dtype=torch.int64)
    for features, targets, message in (
        (torch.ones(2, WIDTH + 1), labels, "shape"),
        (torch.ones(2, WIDTH), labels[:1], "one integer label"),
        (torch.ones(2, WIDTH), labels.float(), "one integer label"),
        (torch.ones(2, WIDTH), labels - 1, "from 0"),
        (torch.full((2, WIDTH), float("nan")), labels, "NaN"),
    ):
        with pytest.raises(UserError, match=message):
            head.update(features, targets)
    with pytest.raises(UserError, match="merged"):
        head.merge(NearestMeanHead(WIDTH + 1))
    head.update(torch.ones(0, WIDTH), labels[:0])
    torch.testing.assert_close(head.state_dict(), before, rtol=0, atol=0)


def test_one_sample_per_class():
    features, labels = data(samples=4)
    for name in EXACT:
        head = build(name)
        head.update(features, labels)
        assert torch.equal(head(features).argmax(1), labels), name


def test_nearest_mean_by_hand():
    head = NearestMeanHead(2)
    head.update(torch.tensor([[2.0, 0.0], [0.0, 2.0], [0.0, 3.0]]), torch.tensor([0, 0, 1]))
    expected = torch.tensor([[0.5**0.5, 0.0], [0.5**0.5, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(head(torch.tensor([[5.0, 0.0], [0.0, 1.0]])), expected)


def test_slda_covariance_is_that_of_the_data():
    features, labels = data()
    head = SldaHead(WIDTH)
    head.update(features, labels)
    centred = torch.cat([features[labels == c] - features[labels == c].mean(0) for c in range(4)])
    torch.testing.assert_close(head.covariance, centred.T @ centred / 60, rtol=1e-10, atol=1e-12)


@settings(max_examples=20)
@given(seed=st.integers(0, 100), cuts=st.lists(st.integers(0, 40), max_size=3))
def test_streaming_slda_equals_the_loop_over_samples(seed, cuts):
    features, labels = data(samples=40)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(seed))
    features, labels = features[order], labels[order]
    head = SldaHead(WIDTH, rule="streaming")
    edges = [0, *sorted(cuts), 40]
    for start, stop in pairwise(edges):
        head.update(features[start:stop], labels[start:stop])
    covariance = torch.zeros(WIDTH, WIDTH, dtype=torch.float64)
    means, counts = torch.zeros(4, WIDTH, dtype=torch.float64), torch.zeros(4)
    for n, (x, y) in enumerate(zip(features, labels, strict=True)):
        delta = x - means[y]
        covariance = (n * covariance + n / (n + 1) * torch.outer(delta, delta)) / (n + 1)
        means[y] = (counts[y] * means[y] + x) / (counts[y] + 1)
        counts[y] += 1
    torch.testing.assert_close(head.covariance, covariance, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(head.means, means, rtol=1e-6, atol=1e-8)


def test_slda_with_an_isotropic_covariance_ranks_as_the_nearest_mean():
    features, labels = data()
    head = SldaHead(WIDTH, shrinkage=1.0)
    head.update(features, labels)
    means = torch.stack([features[labels == c].mean(0) for c in range(4)])
    nearest = torch.cdist(features, means).argsort(dim=1)
    assert torch.equal(head(features).argsort(dim=1, descending=True), nearest)


def test_whitened_cosines_equal_the_formula_over_layers_of_length_one():
    features, labels = data()
    head = WhitenedMeanHead(WIDTH, shrinkage=0.3, layers=2)
    head.update(features, labels)
    unit = torch.nn.functional.normalize(features.reshape(60, 2, 3), dim=2).reshape(60, WIDTH)
    means = torch.stack([unit[labels == c].mean(0) for c in range(4)])
    scatter = (unit - means[labels]).T @ (unit - means[labels]) / 56
    shrunk = 0.7 * scatter + 0.3 * scatter.diagonal().mean() * torch.eye(WIDTH).double()
    values, vectors = torch.linalg.eigh(shrunk)
    root = vectors / values.sqrt()
    rows, centres = (unit - means.mean(0)) @ root, (means - means.mean(0)) @ root
    expected = torch.nn.functional.cosine_similarity(rows[:, None], centres[None], dim=2)
    torch.testing.assert_close(head(features), expected, rtol=1e-9, atol=1e-11)


def test_classes_with_one_sample_are_found_beside_classes_with_many():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60).repeat(12)
    rare = labels >= 30
    kept = ~rare | (torch.arange(720) < 60)
    centres = torch.randn(60, 40, generator=generator) + 5.0
    rows, tests = (centres[labels] + 1.3 * torch.randn(720, 40, generator=generator) for _ in range(2))
    found = {}
    for head in (WhitenedMeanHead(40), SldaHead(40, shrinkage="oas")):
        head.update(rows[kept], labels[kept])
        right = (head(tests).argmax(dim=1) == labels).double()
        found[type(head)] = (float(right[rare].mean()), float(right[~rare].mean()))
    assert found[WhitenedMeanHead][0] > found[SldaHead][0] + 0.2
    assert found[WhitenedMeanHead][1] > 0.9


def test_heads_over_different_layers_are_not_merged():
    first, second = WhitenedMeanHead(WIDTH, layers=2), WhitenedMeanHead(WIDTH, layers=3)
    second.update(*data())
    with pytest.raises(UserError, match="numbers of layers"):
        first.merge(second)


def test_ridge_equals_normal_equations_and_their_dual():
    features, labels = data()
    targets = torch.nn.functional.one_hot(labels).double()
    head = RidgeHead(WIDTH, lam=0.7)
    head.update(features, labels)
    primal = torch.linalg.solve(features.T @ features + 0.7 * torch.eye(WIDTH).double(), features.T @ targets)
    dual = features.T @ torch.linalg.solve(features @ features.T + 0.7 * torch.eye(60).double(), targets)
    torch.testing.assert_close(head.solution[0].T, primal, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(head.solution[0].T, dual, rtol=1e-8, atol=1e-10)


def test_ranpac_with_the_identity_is_ridge():
    features, labels = data()
    ridge, ranpac = RidgeHead(WIDTH, lam=0.7), RanPacHead(WIDTH, lam=0.7, proj_dim=WIDTH, relu=False)
    ranpac.projection.copy_(torch.eye(WIDTH))
    for head in (ridge, ranpac):
        head.update(features, labels)
    torch.testing.assert_close(ridge(features), ranpac(features), rtol=1e-12, atol=1e-12)


def test_the_projection_is_rebuilt_from_its_seed():
    first, second = RanPacHead(WIDTH, seed=3), RanPacHead(WIDTH, seed=3)
    assert torch.equal(first.projection, second.projection)
    assert "projection" not in first.state_dict()
    other = RanPacHead(WIDTH, seed=4)
    other.update(*data())
    with pytest.raises(UserError, match="projections"):
        first.merge(other)


@pytest.mark.parametrize(("rows", "width"), [(20, 30), (30, 8)], ids=["dual", "primal"])
def test_one_eigendecomposition_gives_the_error_of_every_lambda(rows, width):
    generator = torch.Generator().manual_seed(0)
    fit, held = (torch.randn(n, width, generator=generator).double() for n in (rows, 7))
    targets, held_targets = (torch.randn(n, 3, generator=generator).double() for n in (rows, 7))
    lambdas = [1e-4, 1e-1, 1.0, 1e3]
    ours = ridge_path_errors(fit, targets, held, held_targets, lambdas)
    for lam, error in zip(lambdas, ours, strict=True):
        weight = torch.linalg.solve(fit.T @ fit + lam * torch.eye(width).double(), fit.T @ targets)
        expected = (held @ weight - held_targets).square().mean()
        torch.testing.assert_close(error, expected, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize(("rows", "width"), [(20, 30), (30, 8)], ids=["few samples", "many"])
def test_one_eigendecomposition_gives_the_left_out_cosine_of_every_lambda(rows, width):
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(rows, width, generator=generator).double()
    y = torch.nn.functional.one_hot(torch.arange(rows) % 3).double()
    lambdas = [1e-2, 1e-1, 1.0, 1e3]
    ours = cross_validated_cosines(h.T @ h, h.T @ y, rows, lambdas)
    for lam, cosine in zip(lambdas, ours, strict=True):
        smoother = h @ torch.linalg.solve(h.T @ h + lam * torch.eye(width).double(), h.T)
        leverage = smoother.trace() / rows
        left_out = (smoother @ y - leverage * y) / (1 - leverage)
        expected = (left_out * y).sum() / (left_out.norm() * y.norm())
        torch.testing.assert_close(cosine, expected, rtol=1e-6, atol=1e-8)
    if rows < width:  # the limit of lambda towards zero
        inverse = torch.linalg.inv(h @ h.T)
        left_out = y - rows * inverse @ y / inverse.trace()
        expected = (left_out * y).sum() / (left_out.norm() * y.norm())
        found = cross_validated_cosines(h.T @ h, h.T @ y, rows, [1e-8])[0]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("rule", "much"), [("gcv", 3.0), ("grid", 30.0)])
def test_noise_asks_for_a_larger_lambda(rule, much):
    features, labels = data(samples=200)
    chosen = {}
    for noise in (0.01, much):
        head = RidgeHead(WIDTH, lam=rule)
        noisy = features + noise * torch.randn(features.shape, generator=torch.Generator().manual_seed(0))
        head.update(noisy, labels)
        head.end_task(noisy, labels)
        chosen[noise] = float(head.lam)
    assert chosen[0.01] < chosen[much]


def test_tasks_of_ten_samples_get_a_good_lambda_from_everything_seen():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60).repeat_interleave(10)
    centres = torch.randn(60, 32, generator=generator)
    features = centres[labels] + 2.0 * torch.randn(600, 32, generator=generator)
    train = torch.arange(600) % 10 < 5
    accuracy = {}
    for lam in ("gcv", "grid", 1e-8, 1.0, 10.0, 100.0, 1000.0):
        head = RanPacHead(32, proj_dim=150, lam=lam)
        for first in range(0, 60, 2):
            rows = train & (labels >= first) & (labels < first + 2)
            head.update(features[rows], labels[rows])
            head.end_task(features[rows], labels[rows])
        accuracy[lam] = float((head(features[~train]).argmax(dim=1) == labels[~train]).double().mean())
    best = max(value for rule, value in accuracy.items() if rule not in ("gcv", "grid"))
    assert accuracy["gcv"] > best - 0.03
    assert accuracy["gcv"] > accuracy["grid"] + 0.05


def test_lambda_is_chosen_again_once_the_samples_have_grown_by_a_tenth():
    features, labels = data()
    head = RidgeHead(WIDTH)
    for stop, expected in ((20, 20), (21, 20), (22, 22), (24, 22), (60, 60)):
        seen = int(head.counts.sum())
        head.update(features[seen:stop], labels[seen:stop])
        head.end_task(features[seen:stop], labels[seen:stop])
        assert int(head.chosen_at) == expected


def test_fecam_with_an_identity_covariance_is_the_nearest_mean():
    features, labels = data()
    fecam, ncm = FeCamHead(WIDTH, gamma1=1e12), NearestMeanHead(WIDTH, normalize_first=True)
    for head in (fecam, ncm):
        head.update(features, labels)
    torch.testing.assert_close(2 + fecam(features), 2 * ncm(features), rtol=1e-5, atol=1e-5)


def test_fecam_equals_the_formula():
    features, labels = data()
    head = FeCamHead(WIDTH)
    head.update(features, labels)
    unit = torch.nn.functional.normalize(features, dim=-1)
    for c in range(4):
        rows = unit[labels == c]
        shrunk = torch.cov(rows.T) + torch.cov(rows.T).diagonal().mean() * torch.eye(WIDTH).double()
        scale = shrunk.diagonal().sqrt()
        inverse = torch.linalg.inv(shrunk / torch.outer(scale, scale))
        away = unit - torch.nn.functional.normalize(rows.mean(0), dim=0)
        expected = -torch.einsum("bd,de,be->b", away, inverse, away)
        torch.testing.assert_close(head(features)[:, c], expected, rtol=1e-4, atol=1e-5)


def test_a_power_transform_refuses_negative_features():
    with pytest.raises(UserError, match="not negative"):
        FeCamHead(WIDTH, tukey=0.5).update(*data())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "slda", "shrinkage": 1.5}, "between 0 and 1"),
        ({"name": "slda", "rule": "batch"}, "'exact' or 'streaming'"),
        ({"name": "ridge", "lam": 0.0}, "positive"),
        ({"name": "ridge", "lam": "auto"}, "'gcv' or 'grid'"),
        ({"name": "ranpac", "proj_dim": 0}, "at least 1"),
        ({"name": "fecam", "gamma1": -1.0}, "not negative"),
        ({"name": "whitened", "layers": 4}, "divide the 6 features"),
        ({"name": "whitened", "shrinkage": -0.1}, "between 0 and 1"),
        ({"name": "ncm", "width": 0}, "at least one feature"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(UserError, match=message):
        made(options)
