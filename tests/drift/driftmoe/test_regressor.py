"""DriftMoE for numbers: River's checks, what is better than one voice, drifts, wild values, mistakes."""

import copy
import math
import pickle

import numpy as np
import pytest
from river import drift
from river.checks import check_estimator
from river.datasets import TrumpApproval, synth

from moe_adapt.drift.committee.regression import NearestMean, OnlineNetwork, RecentErrors
from moe_adapt.drift.driftmoe import DriftMoERegressor
from moe_adapt.errors import UserError


def errors(model, rows):
    found = []
    for x, y in rows:
        found.append(abs(model.predict_one(x) - y))
        model.learn_one(x, y)
    return np.array(found)


def line(rows, turn=math.inf, seed=1):
    """A line with a bend, whose slope turns at a row."""
    rng = np.random.default_rng(seed)
    for t, (a, b) in enumerate(rng.uniform(-1, 1, size=(rows, 2))):
        yield {"a": 1000 * a, "b": b}, 50 + (10 if t < turn else -10) * (a + max(b, 0))


def test_river_checks_without_skips():
    model = DriftMoERegressor(n_experts=3, seed=1)
    assert model._unit_test_skips() == set()
    check_estimator(model)


def test_it_learns_and_its_voices_share_the_answer():
    model = DriftMoERegressor(n_experts=3, seed=1)
    found = errors(model, line(400))
    assert found[300:].mean() < 0.1 * found[:10].mean()
    assert sum(model.weights.values()) == pytest.approx(1)
    assert set(model.weights) == {"trees", "mlp", "linear", "neighbours"}


def test_weights_follow_recent_errors():
    found = RecentErrors(2)
    for _ in range(50):
        found.update(np.array([1.0, 3.0]), 1.0)
    ratio = (found.sums[0, 1] / found.sums[0, 0]) ** 2
    assert found.shares[0] / found.shares[1] == pytest.approx(ratio, rel=1e-4) and ratio > 70
    found.forget(1)
    assert found.sums[:, 1].tolist() == [1.0, 1.0] and found.shares[0] < 0.6


def test_the_mean_of_the_nearest_by_hand():
    voice = NearestMean()
    voice.fit(1)
    assert voice.answer(np.zeros(1)) == 0.0
    for x, y in ((1.0, 2.0), (3.0, 8.0)):
        voice.learn(np.array([x]), y, 1.0)
    near, far = 1 / 1.001, 1 / 3.001
    assert voice.answer(np.zeros(1)) == pytest.approx((2 * near + 8 * far) / (near + far))


def test_rows_that_wait_grow_with_the_inputs():
    network = OnlineNetwork("linear", np.random.default_rng(0))
    for inputs in (1, 2, 3, 4):
        network.fit(inputs)
        network.learn(np.ones(inputs), 1.0, 1.0)
    assert network.layers.steps == 1 and not network.waiting


@pytest.mark.parametrize("detector", [True, drift.PageHinkley(threshold=5.0)])
def test_trees_are_replaced_after_a_drift(detector):
    model = DriftMoERegressor(n_experts=3, experts=["trees"], detector=detector, seed=1)
    quiet = DriftMoERegressor(n_experts=3, experts=["trees"], detector=False, seed=1)
    rows = list(line(500, turn=250))
    found, other = errors(model, rows), errors(quiet, rows)
    assert model.n_drifts_detected > 0 == quiet.n_drifts_detected
    assert found[350:].mean() < other[350:].mean()


def test_a_kept_model_goes_on_and_predicting_changes_nothing():
    rows = list(TrumpApproval().take(60))
    model = DriftMoERegressor(n_experts=2, seed=3)
    errors(model, rows[:40])
    twin, kept = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    for x, _ in rows[40:]:
        model.predict_one(x)
    for x, y in rows[40:]:
        for one in (model, twin, kept):
            one.learn_one(x, y)
    assert model.predict_one(x) == twin.predict_one(x) == kept.predict_one(x)


def test_words_gaps_new_columns_and_wild_numbers():
    rng = np.random.default_rng(5)
    model = DriftMoERegressor(n_experts=2, seed=1)
    found = []
    for t, a in enumerate(rng.uniform(-1, 1, size=400)):
        word = "uv"[t % 2]
        x = {"a": a if t % 9 else None, "word": word} | ({"late": rng.normal()} if t > 100 else {})
        y = 3 * (a if t % 9 else 0) + (5 if word == "u" else -5)
        if t == 200:
            x["a"], y = 1e90, 1e80
        guess = model.predict_one(x)
        model.learn_one(x, y)
        assert math.isfinite(guess)
        found.append(abs(guess - y))
    assert np.mean(found[350:]) < 2.5


@pytest.mark.parametrize("y", [math.nan, math.inf, None, "3", 10**400, pytest.param(10**5000, id="long")])
def test_targets_that_are_none_leave_the_model_as_it_was(y):
    model = DriftMoERegressor(n_experts=2, seed=1)
    rows = list(line(20))
    errors(model, rows)
    before = model.predict_one(rows[3][0])
    with pytest.raises(UserError, match="finite number"):
        model.learn_one({"a": 1.0, "b": 2.0, "new": 3.0}, y)
    assert model.predict_one(rows[3][0]) == before
    model.learn_one(*rows[0], w=0.0)
    assert model.predict_one(rows[3][0]) == before
    with pytest.raises(UserError, match="weight"):
        model.learn_one(*rows[0], w=-1.0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n_experts": 0}, "n_experts"),
        ({"experts": "mlp"}, "list"),
        ({"experts": ["tree"]}, "Did you mean 'trees'"),
        ({"experts": ["mlp", "mlp"]}, "each once"),
        ({"detector": "ADWIN"}, "detector"),
    ],
)
def test_mistakes_are_told(options, words):
    with pytest.raises(UserError, match=words):
        DriftMoERegressor(**options)


def test_it_is_ahead_of_the_mean_on_a_stream_with_drift():
    rows = list(synth.FriedmanDrift(drift_type="gra", position=(150, 200), seed=4).take(300))
    mean = np.mean([y for _, y in rows])
    found = errors(DriftMoERegressor(n_experts=2, seed=1), rows)
    assert found[50:].mean() < 0.8 * np.mean([abs(y - mean) for _, y in rows[50:]])
