"""The fast tree against River's, split for split and prediction for prediction; River's own checks."""

import copy
import math
import os
import pickle
import random

import pytest
from river.checks import check_estimator
from river.tree import HoeffdingTreeClassifier

from moe_adapt.drift.hoeffding.tree import FastHoeffdingTree
from moe_adapt.drift.streams.real import real_stream
from moe_adapt.drift.streams.suites import synthetic_stream
from moe_adapt.errors import UserError
from tests.drift.hoeffding.trees import fast_shape, river_shape, run_both


def same(stream, rows, least_leaves, **options):
    slow, fast, difference = run_both(stream, rows, **options)
    assert difference < 1e-9
    assert river_shape(slow._root) == fast_shape(fast)
    assert fast.n_leaves == slow.n_leaves >= least_leaves


@pytest.mark.parametrize(
    ("name", "rows", "least_leaves", "options"),
    [
        ("SEA_a", 3000, 3, {"grace_period": 50, "tau": 0.1}),
        ("LED_a", 2000, 3, {"grace_period": 50, "tau": 0.4}),
        ("RBF_m", 2000, 3, {"grace_period": 50, "tau": 0.3}),
        ("HYPER", 1500, 3, {"grace_period": 50, "tau": 0.15, "max_share_to_split": 1.0}),
        ("SEA_g", 1500, 2, {"grace_period": 50, "tau": 0.2, "leaf_prediction": "mc"}),
        ("SEA_g", 1500, 2, {"grace_period": 50, "tau": 0.2, "leaf_prediction": "nb", "max_depth": 1}),
    ],
)
def test_numeric(name, rows, least_leaves, options):
    same(synthetic_stream(name, 4000), rows, least_leaves, **options)


@pytest.mark.parametrize(
    ("name", "rows", "least_leaves", "options"),
    [
        ("LED_g", 2500, 2, {"grace_period": 50, "tau": 0.2}),
        ("AGR_a", 3000, 10, {"grace_period": 50}),
        ("RTG", 3000, 10, {"grace_period": 50}),
        ("RTG", 3000, 6, {"grace_period": 50, "tau": 0.2, "binary_split": True}),
    ],
)
def test_nominal(name, rows, least_leaves, options):
    stream = synthetic_stream(name, 4000)
    same(stream, rows, least_leaves, nominal=sorted(stream.nominal), **options)


@pytest.mark.skipif("MOE_ADAPT_DATA" not in os.environ, reason="MOE_ADAPT_DATA is not set: no Electricity")
@pytest.mark.parametrize("options", [{}, {"grace_period": 50, "tau": 0.2, "max_share_to_split": 1.0}])
def test_electricity(options):
    same(real_stream("elec6"), 4000, 5, **options)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SEA_a", "LED_a", "RBF_f", "AGR_g"])
@pytest.mark.parametrize("declared", [True, False])
def test_twenty_thousand_rows(name, declared):
    stream = synthetic_stream(name, 20_000)
    same(stream, 20_000, 1, nominal=sorted(stream.nominal) if declared else None, grace_period=50)


def holes(rows):
    draw = random.Random(1)
    for x, y in rows:
        yield {name: value for name, value in x.items() if draw.random() > 0.1}, y


def test_missing_features_and_new_values():
    stream = synthetic_stream("RTG", 3000)
    early = [({**x, "nominal1": min(x["nominal1"], 2)}, y) for x, y in list(stream)[:1500]]
    late = list(stream)[1500:]
    nominal = sorted(stream.nominal)
    same(holes(early + late), 3000, 6, nominal=nominal, grace_period=50, tau=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"leaf_prediction": "mc"}, {"grace_period": 20, "tau": 0.5}])
def test_river_checks(options):
    check_estimator(FastHoeffdingTree(**options))
    assert FastHoeffdingTree()._unit_test_skips() == set()


def test_weights_count_like_repetitions():
    once, twice = FastHoeffdingTree(grace_period=1000), FastHoeffdingTree(grace_period=1000)
    for x, y in synthetic_stream("SEA_a", 400):
        once.learn_one(x, y, w=2)
        twice.learn_one(x, y)
        twice.learn_one(x, y)
    probe = {"attrib1": 3.0, "attrib2": 4.0, "attrib3": 5.0}
    assert once._pool.store.total[0] == twice._pool.store.total[0] == 800
    assert once.predict_one(probe) == twice.predict_one(probe)


def test_nearly_pure_leaves_keep_what_they_observed():
    rows = [({"a": float(i % 7), "b": float(i % 5)}, int(i % 250 == 0)) for i in range(1000)]
    ours = FastHoeffdingTree()
    rivers = HoeffdingTreeClassifier()
    for x, y in rows:
        ours.learn_one(x, y)
        rivers.learn_one(x, y)
    assert rivers._root.splitters == {}
    assert ours._pool.store.moments[0, :, 0].sum() == 2 * 1000


def test_growth_stops_at_the_most_leaves():
    tree = FastHoeffdingTree(grace_period=20, tau=0.9, max_leaves=5)
    for x, y in synthetic_stream("AGR_a", 3000):
        tree.learn_one(x, y)
    assert 5 <= tree.n_leaves <= 6


@pytest.mark.parametrize("bad", ["text", math.inf])
def test_bad_values_are_told_and_change_nothing(bad):
    tree = FastHoeffdingTree()
    for x, y in synthetic_stream("SEA_a", 200):
        tree.learn_one(x, y)
    before = pickle.dumps(tree)
    x = {"attrib1": 1.0, "attrib2": bad, "attrib3": 2.0, "fresh": 1.0}
    with pytest.raises(UserError, match="attrib2"):
        tree.learn_one(x, 1)
    with pytest.raises(UserError, match="attrib2"):
        tree.predict_one(x)
    assert pickle.dumps(tree) == before


def test_nan_and_none_are_missing():
    tree = FastHoeffdingTree()
    for x, y in synthetic_stream("SEA_a", 300):
        tree.learn_one(x, y)
    absent = {"attrib1": 3.0, "attrib3": 1.0}
    for value in (None, math.nan):
        assert tree.predict_proba_one({**absent, "attrib2": value}) == tree.predict_proba_one(absent)


def test_copies_share_nothing():
    tree = FastHoeffdingTree(grace_period=50)
    for x, y in synthetic_stream("SEA_a", 500):
        tree.learn_one(x, y)
    other = copy.deepcopy(tree)
    shape = fast_shape(tree)
    for x, y in synthetic_stream("SEA_g", 500):
        other.learn_one(x, y)
    assert fast_shape(tree) == shape


@pytest.mark.parametrize(
    "options", [{"delta": 0.0}, {"leaf_prediction": "best"}, {"grace_period": 0}, {"max_leaves": 0}]
)
def test_bad_options_are_told(options):
    with pytest.raises(UserError):
        FastHoeffdingTree(**options)
