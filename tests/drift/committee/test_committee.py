"""The committee of voices: what each part does, River's conventions, faults that were found by trying."""

import math

import numpy as np
import pandas as pd
import pytest
from river import drift, linear_model, naive_bayes, preprocessing, tree

from moe_adapt.drift.committee.layers import Layers
from moe_adapt.drift.committee.neighbours import WINDOW, Neighbours, nearest
from moe_adapt.drift.committee.reliability import Reliability
from moe_adapt.drift.committee.voices import voice_names
from moe_adapt.drift.driftmoe import DriftMoEClassifier
from moe_adapt.drift.hoeffding import FastHoeffdingTree, labels
from moe_adapt.drift.streams import synthetic_stream
from moe_adapt.errors import UserError

VOICES_OF_RIVER = ("trees", naive_bayes.GaussianNB(), tree.HoeffdingTreeClassifier())


def accuracy(model, rows):
    right = 0
    for x, y in rows:
        right += model.predict_one(x) == y
        model.learn_one(x, y)
    return right / len(rows)


def test_the_word_of_a_voice_counts_by_how_right_it_was_lately():
    found = Reliability(2)
    for _ in range(3000):
        found.update(np.array([True, False]), 1.0)
    assert found.odds[0] > 900 and found.odds[1] < 0.01
    for _ in range(300):
        found.update(np.array([False, False]), 1.0)
    assert found.accuracy[0] == pytest.approx(0.5, abs=0.01), "half of the weight is 300 rows old"


def test_neighbours_by_hand():
    ring = Neighbours()
    ring.grow(2)
    for x, y in (((0.0, 0.0), 0), ((3.0, 4.0), 1)):
        ring.add(np.array(x), y, 1.0)
    votes = [0.01 + 1 / 0.001, 0.01 + 1 / 25.001, 0.01]
    assert ring.proba(np.zeros(2), 3) == pytest.approx(np.array(votes) / sum(votes))
    for _ in range(WINDOW - 2):
        ring.add(np.array((1.0, 1.0)), 2, 1.0)
    ring.proba(np.zeros(2), 3)
    assert ring._answers.argmax(axis=1).tolist() == [2, 0], "the first rows are not among the recent ones"
    for _ in range(2):
        ring.add(np.array((1.0, 1.0)), 2, 1.0)
    assert ring.proba(np.zeros(2), 3).argmax() == 2, "the first rows have left the ring"


def test_of_rows_at_the_same_distance_the_newer_counts():
    assert nearest(np.array([3.0, 1.0, 1.0, 2.0, 3.0, 3.0, 0.0])).tolist() == [6, 1, 2, 3, 0]
    ring = Neighbours()
    ring.grow(1)
    for t in range(20):
        ring.add(np.zeros(1), t % 4, 1.0)
    newest = ring.proba(np.zeros(1), 4)
    assert newest.argmax() == 3 and newest[3] == pytest.approx(2 / 5, abs=1e-4)


def test_columns_that_part_the_classes_count_more():
    rng, ring = np.random.default_rng(0), Neighbours()
    ring.grow(3)
    winners = []
    for column, rows in ((1, 600), (2, 1800)):
        for vector in rng.normal(size=(rows, 3)):
            ring.add(vector, int(vector[column] > 0), 1.0)
        winners.append(int(ring.relevance.argmax()))
        assert ring.relevance.max() > 1.3 and ring.relevance.mean() == pytest.approx(1.0)
    assert winners == [1, 2], "what parted them before is forgotten"
    ring.grow(4)
    assert ring.relevance.shape == (4,) and (ring.rows[3] == 0).all()


@pytest.mark.parametrize("hidden", [(), (8, 4)])
@pytest.mark.parametrize("loss", ["softmax", "bce", "squares"])
def test_gradients_of_the_networks(hidden, loss):
    rng = np.random.default_rng(0)
    net = Layers(hidden, 0.0, loss, rng)
    net.grow(3, 2)
    net.values[0] = rng.normal(size=net.n_parameters)
    x, weight = rng.normal(size=(5, 3)), rng.uniform(0.5, 2, 5)
    target = np.eye(2)[rng.integers(2, size=5)]

    def value():
        logits = net.forward(x)
        if loss == "softmax":
            log = logits - np.log(np.exp(logits).sum(1, keepdims=True))
            return -(weight * (target * log).sum(1)).sum() / 5
        if loss == "squares":
            return (weight * ((logits - target) ** 2).sum(1)).sum() / 10
        cross = np.log1p(np.exp(logits)) - target * logits
        return (weight[:, None] * cross).sum() / 10

    net.step(x, target, weight)
    gradient = net.values[3].copy()
    for place in range(net.n_parameters):
        net.values[0, place] += 1e-6
        up = value()
        net.values[0, place] -= 2e-6
        assert gradient[place] == pytest.approx((up - value()) / 2e-6, abs=1e-6)
        net.values[0, place] += 1e-6


def test_networks_keep_what_they_know_when_they_grow():
    net = Layers((8, 4), 0.01, "softmax", np.random.default_rng(0))
    net.grow(3, 2)
    before = net.forward(np.array([1.0, 2.0, 3.0]))
    net.grow(5, 3)
    assert net.forward(np.array([1.0, 2.0, 3.0, 0.0, 0.0]))[:2] == pytest.approx(before)


def test_every_tree_looks_at_some_columns_only():
    model = DriftMoEClassifier(seed=1, backend="array")
    accuracy(model, list(synthetic_stream("RBF_m", 300))[:6])
    trees = model._engine.trees
    assert (trees.numeric.sum(axis=1) == 6).all() and len({tuple(row) for row in trees.numeric}) > 6
    observed = trees.experts.pool.store.moments[: trees.count, :, 0].sum(axis=1) > 0
    assert (observed[[trees.experts.pool.slot[n] for n in trees.experts.pool.root]] <= trees.numeric).all()


def test_lists_of_voices():
    rows = list(synthetic_stream("SEA_a", 600))
    voices = ("linear", naive_bayes.GaussianNB(), linear_model.LogisticRegression())
    model = DriftMoEClassifier(experts=voices, seed=1)
    assert accuracy(model, rows) > 0.75
    assert list(model.explain_one(rows[0][0])["voices"]) == ["linear", "GaussianNB", "LogisticRegression"]
    for wrong, words in (
        (["nets"], "no voice 'nets'"),
        (["mlp", "mlp"], "twice"),
        ([], "empty"),
        ([3], "not 'int'"),
        ("mlp", "list"),
    ):
        with pytest.raises(UserError, match=words):
            voice_names(wrong)
    with pytest.raises(UserError, match=r"experts=\[...\]"):
        DriftMoEClassifier(expert=[tree.HoeffdingTreeClassifier()])
    with pytest.raises(UserError, match="mode='committee'"):
        DriftMoEClassifier(mode="data", router=True)


@pytest.mark.parametrize("mode", ["committee", "data", "task"])
def test_binary_river_experts_and_labels_that_are_words(mode):
    expert = preprocessing.StandardScaler() | linear_model.LogisticRegression()
    model = DriftMoEClassifier(expert=expert, mode=mode, n_experts=3, poisson=1.0, seed=1)
    rows = [(x, "abc"[int(x["attrib1"] // 4)]) for x, _ in synthetic_stream("SEA_a", 300)]
    assert accuracy(model, rows) > 0.6


@pytest.mark.parametrize("mode", ["committee", "data"])
def test_a_detector_of_river_is_used(mode):
    quiet = DriftMoEClassifier(mode=mode, detector=drift.NoDrift(), seed=1)
    alarmed = DriftMoEClassifier(mode=mode, detector=drift.DummyDriftDetector(t_0=50, seed=1), seed=1)
    found = []
    for x, y in synthetic_stream("SEA_a", 300):
        quiet.learn_one(x, y)
        alarmed.learn_one(x, y)
        found.append(alarmed.drift_detected)
    assert quiet.drifts == [] and not quiet.drift_detected
    assert len(alarmed.drifts) == alarmed.n_drifts_detected() > 0
    assert [t for t, one in enumerate(found) if one] == sorted({t for t, _ in alarmed.drifts})
    with pytest.raises(UserError, match="detector"):
        DriftMoEClassifier(detector="ADWIN")


def test_who_voted_and_which_columns_count():
    rows = list(synthetic_stream("SEA_a", 1500))
    model = DriftMoEClassifier(seed=1)
    assert model.explain_one(rows[0][0]) == {} and "no label" in model.debug_one(rows[0][0])
    accuracy(model, rows)
    found = model.explain_one(rows[0][0])
    assert sum(voice["weight"] for voice in found["voices"].values()) == pytest.approx(1)
    assert found["answer"] == model.predict_one(rows[0][0])
    assert sum(one["weight"] for one in found["voices"]["trees"]["members"]) == pytest.approx(1)
    text = model.debug_one(rows[0][0])
    assert "neighbours" in text and "tree 11" in text
    importances = model.feature_importances
    assert sum(importances.values()) == pytest.approx(1)
    assert importances["attrib3"] < min(importances["attrib1"], importances["attrib2"])


@pytest.mark.parametrize("mode", ["committee", "data", "task"])
def test_weights(mode):
    rows = list(synthetic_stream("SEA_a", 200))
    one, other = (DriftMoEClassifier(mode=mode, seed=1) for _ in range(2))
    for x, y in rows:
        one.learn_one(x, y)
        other.learn_one(x, y, w=1.0)
        other.learn_one({"new": 1.0}, "unseen", w=0)
    assert one.predict_proba_one(rows[0][0]) == other.predict_proba_one(rows[0][0])
    X, y = pd.DataFrame([x for x, _ in rows]), pd.Series([y for _, y in rows])
    one.learn_many(X, y, w=2.0)
    one.learn_many(X, y, w=[0.5] * len(rows))
    for weight in (-1.0, math.nan, math.inf, 10**400, 10**5000):
        with pytest.raises(UserError, match="weight"):
            one.learn_one(*rows[0], w=weight)


@pytest.mark.parametrize("mode", ["committee", "data", "task", "tree"])
def test_late_columns_are_learned_although_rows_are_predicted_first(mode):
    model = FastHoeffdingTree(grace_period=50) if mode == "tree" else DriftMoEClassifier(mode=mode, seed=1)
    draw, right = np.random.default_rng(0), []
    for t in range(1200):
        a = draw.random()
        x = {"z": draw.random(), **({"a": a} if t >= 50 else {})}
        right.append(model.predict_one(x) == int(a > 0.5))
        model.learn_one(x, int(a > 0.5))
    assert np.mean(right[-400:]) > 0.95


@pytest.mark.parametrize("mode", ["committee", "data", "task", "paper", "tree", "river"])
@pytest.mark.parametrize("wild", [1e300, -1.7976931348623157e308, 10**400, 1e99, pd.NA, pd.NaT])
def test_wild_numbers_leave_later_rows_right(mode, wild):
    makers = {
        "tree": lambda: FastHoeffdingTree(grace_period=50),
        "paper": lambda: DriftMoEClassifier.paper(seed=1),
        "river": lambda: DriftMoEClassifier(n_experts=2, experts=VOICES_OF_RIVER, backend="river", seed=1),
    }
    model = makers.get(mode, lambda: DriftMoEClassifier(mode=mode, seed=1))()
    draw, right = np.random.default_rng(0), []
    for t in range(700):
        x = {"a": draw.random(), "b": draw.random()}
        y = int(x["a"] > 0.5)
        if t in (60, 61, 200):
            x["a"] = wild
        proba = model.predict_proba_one(x)
        assert not proba or (sum(proba.values()) == pytest.approx(1) and min(proba.values()) >= 0)
        right.append(max(proba, key=proba.get, default=None) == y)
        model.learn_one(x, y)
    plain = mode in ("paper", "tree", "river") and isinstance(wild, float) and wild == 1e99  # as River's tree
    limit = 0.5 if plain else 0.9
    assert np.mean(right[-200:]) > limit


@pytest.mark.parametrize("mode", ["committee", "tree"])
def test_a_column_of_huge_numbers_leaves_probabilities(mode):
    model = FastHoeffdingTree(grace_period=50) if mode == "tree" else DriftMoEClassifier(n_experts=4, seed=1)
    right = []
    for t in range(600):
        a = t * 7919 % 100 / 100
        x, y = {"a": a, "b": 1e300 * (-1) ** t}, int(a > 0.5)
        proba = model.predict_proba_one(x)
        assert not proba or (sum(proba.values()) == pytest.approx(1) and min(proba.values()) >= 0)
        right.append(model.predict_one(x) == y)
        model.learn_one(x, y)
    assert np.mean(right[-200:]) > 0.95


@pytest.mark.parametrize("mode", ["committee", "data", "task"])
def test_bad_labels_are_told_and_change_nothing(mode, monkeypatch):
    rows = list(synthetic_stream("SEA_a", 200))
    model, other = (DriftMoEClassifier(mode=mode, seed=1) for _ in range(2))
    monkeypatch.setattr(labels, "MOST_LABELS", 2)
    for x, y in rows:
        for bad, words in ((None, "missing"), (math.nan, "missing"), ([1], "list"), ("third", "more than")):
            if bad != "third" or len(model._engine.labels) == 2:
                with pytest.raises(UserError, match=words):
                    model.learn_one(x, bad)
        model.learn_one(x, y)
        other.learn_one(x, y)
    with pytest.raises(UserError, match="holds a list"):
        model.learn_one({**x, "fresh": [1]}, y)
    assert model.predict_proba_one(x) == other.predict_proba_one(x)


def test_a_new_label_in_every_row_is_not_slow():
    model = DriftMoEClassifier(seed=1, backend="array", n_experts=3)
    for t in range(300):
        model.learn_one({"a": float(t)}, t)
    assert len(model.predict_proba_one({"a": 1.0})) == 300
    assert model._engine.trees.experts.pool.store.n_classes < 400


def test_dates_are_numbers():
    days = pd.date_range("2024-01-01", periods=600, freq="h")
    model = DriftMoEClassifier(seed=1)
    assert accuracy(model, [({"t": day}, int(day.hour >= 12)) for day in days]) > 0.4
    assert list(model._engine.features.numeric) == ["t"]
