"""DriftMoE as a River classifier: River's own checks, chunks, bad input, changing features and classes."""

import copy
import inspect
import math
import pickle

import numpy as np
import pandas as pd
import pytest
from river import compose, naive_bayes, preprocessing, tree
from river.checks import check_estimator

from moe_adapt.drift.driftmoe import DriftMoEClassifier
from moe_adapt.drift.hoeffding import encoding
from moe_adapt.drift.metrics import accuracy, windowed
from moe_adapt.drift.prequential import test_then_train as run
from moe_adapt.drift.streams import synthetic_stream
from moe_adapt.drift.streams.generators import LED_BAYES
from moe_adapt.errors import UserError

MODES = ("committee", "data", "task")


def small(mode="data", **options):
    of_paper = {} if mode == "committee" else {"top_k": 2, "hidden": 32}
    return DriftMoEClassifier(**{"mode": mode, "n_experts": 4, "seed": 1, **of_paper, **options})


def learned(model, stream):
    for x, y in stream:
        model.learn_one(x, y)
    return model


@pytest.mark.parametrize("mode", [pytest.param("committee", marks=pytest.mark.slow), "data", "task"])
def test_river_checks_without_skips(mode):
    model = DriftMoEClassifier(mode=mode, seed=1)
    assert model._unit_test_skips() == set()
    check_estimator(model)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "expert",
    [
        tree.HoeffdingTreeClassifier(),
        tree.HoeffdingAdaptiveTreeClassifier(seed=1),
        naive_bayes.GaussianNB(),
    ],
)
def test_river_checks_with_river_experts(mode, expert):
    check_estimator(small(mode, expert=expert))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["data", "task"])
def test_river_checks_of_the_paper_preset(mode):
    check_estimator(DriftMoEClassifier.paper(mode, seed=1))


@pytest.mark.parametrize("mode", MODES)
def test_chunks_give_the_same_bits_as_rows(mode):
    rows = list(synthetic_stream("RBF_f", 400))
    X, y = pd.DataFrame([x for x, _ in rows]), pd.Series([y for _, y in rows])
    single, chunked = small(mode), small(mode)
    learned(single, rows[:300])
    for start in range(0, 300, 70):
        end = min(start + 70, 300)
        chunked.learn_many(X[start:end], y[start:end])
    one = [single.predict_proba_one(x) for x, _ in rows[300:]]
    many = chunked.predict_proba_many(X[300:])
    assert many.to_dict(orient="records") == one
    assert chunked.predict_many(X[300:]).tolist() == [single.predict_one(x) for x, _ in rows[300:]]


@pytest.mark.parametrize("mode", MODES)
def test_predicting_first_changes_nothing(mode):
    asked, silent = small(mode), small(mode)
    for x, y in synthetic_stream("AGR_a", 400):
        asked.predict_one(x)
        asked.learn_one(x, y)
        silent.learn_one(x, y)
    probe = next(iter(synthetic_stream("AGR_g", 400, seed=2)))[0]
    assert asked.predict_proba_one(probe) == silent.predict_proba_one(probe)


def test_a_row_changed_after_its_prediction_is_read_again():
    first, second = small(), small()
    for x, y in synthetic_stream("SEA_a", 300):
        shown = {name: 0.0 for name in x}
        first.predict_one(shown)
        shown.update(x)
        first.learn_one(shown, y)
        second.learn_one(x, y)
    assert first.predict_proba_one(x) == second.predict_proba_one(x)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bad", ["text", math.inf])
def test_bad_values_are_told_and_the_model_goes_on(mode, bad):
    rows = list(synthetic_stream("SEA_a", 300))
    model, other = learned(small(mode), rows[:100]), learned(small(mode), rows[:100])
    for x, y in rows[100:]:
        with pytest.raises(UserError, match="attrib2"):
            model.predict_one({**x, "attrib2": bad})
        with pytest.raises(UserError, match="attrib2"):
            model.learn_one({**x, "attrib2": bad, "fresh": 1.0}, "fresh")
        model.learn_one(x, y)
        other.learn_one(x, y)
    assert model.predict_proba_one(rows[0][0]) == other.predict_proba_one(rows[0][0])


@pytest.mark.parametrize("mode", MODES)
def test_classes_and_features_come_and_go(mode):
    model = small(mode)
    draw = np.random.default_rng(0)
    for t in range(600):
        x = {"a": draw.normal(), "b": draw.normal()}
        if t % 200 > 100:
            x = {"b": x["b"], "colour": ["red", "blue", "green"][t % 3], "extra": draw.normal()}
        if t % 50 == 0:
            x["a"] = None
        proba = model.predict_proba_one(x)
        assert not proba or math.isclose(sum(proba.values()), 1.0)
        model.learn_one(x, ["one", "two", "three"][min(t // 200, t % 3)])
    assert set(model.predict_proba_one({"a": 1.0})) == {"one", "two", "three"}
    assert math.isclose(sum(model.predict_proba_one({}).values()), 1.0)
    assert math.isclose(sum(model.predict_proba_one({"colour": "new", "a": math.nan}).values()), 1.0)


@pytest.mark.parametrize("mode", MODES)
def test_copies_and_pickles_go_on_alike_and_apart(mode):
    rows = list(synthetic_stream("SEA_a", 500))
    model = learned(small(mode), rows[:250])
    others = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    probe = rows[0][0]
    before = model.predict_proba_one(probe)
    for other in others:
        learned(other, rows[250:])
    assert others[0].predict_proba_one(probe) == others[1].predict_proba_one(probe)
    assert model.predict_proba_one(probe) == before
    assert model.clone().predict_proba_one(probe) == {}


def test_works_in_a_pipeline():
    model = compose.Pipeline(preprocessing.StandardScaler(), small())
    found = run(model, synthetic_stream("SEA_a", 600), memory=False)
    assert accuracy(found.truth, found.predicted) > 0.65


def test_task_answers_depend_on_the_trees():
    rows = list(synthetic_stream("RBF_m", 900))
    changed = {}
    for rule in ("intended", "released"):
        model = learned(small("task", task_rule=rule, neural=False), rows[:700])
        before = [model.predict_one(x) for x, _ in rows[700:]]
        model._engine.trees.reset(0)
        changed[rule] = before != [model.predict_one(x) for x, _ in rows[700:]]
    assert changed == {"intended": True, "released": False}


def test_experts_are_replaced_when_the_rule_changes():
    model = learned(small(neural=False), synthetic_stream("SEA_a", 400))
    replaced = model.events["replaced"]
    flipped = [(x, 1 - y) for x, y in synthetic_stream("SEA_a", 600, seed=2)]
    learned(model, flipped)
    assert model.events["replaced"] > replaced
    right = [model.predict_one(x) == 1 - y for x, y in synthetic_stream("SEA_a", 300, seed=3)]
    assert np.mean(right) > 0.7


def test_expert_load_is_counted():
    model = learned(small(), synthetic_stream("SEA_a", 200))
    assert len(model.expert_rows) == 5
    assert sum(model.expert_rows) == model.events["rows"] == 200


@pytest.mark.parametrize(("mode", "rows"), [("committee", 6000), ("task", 2400)])
def test_no_window_of_led_beats_the_bayes_accuracy(mode, rows):
    """LED begins its rows anew after each drift: with 6,000 rows they come back after the memory's end."""
    stream = synthetic_stream("LED_a", rows)
    found = run(DriftMoEClassifier(mode=mode, seed=1), stream, memory=False)
    window = 400
    accuracies = windowed(found.truth, found.predicted, window, every=window)["accuracy"]
    bound = LED_BAYES[10]
    assert stream.bayes == bound
    assert max(accuracies) < bound + 4 * math.sqrt(bound * (1 - bound) / window)


def test_shuffled_labels_give_the_majority_rate():
    rows = list(synthetic_stream("SEA_a", 1500))
    labels = np.random.default_rng(0).permutation([y for _, y in rows])
    model = DriftMoEClassifier(seed=1)
    found = run(model, [(x, int(y)) for (x, _), y in zip(rows, labels, strict=True)], memory=False)
    majority = max(np.mean(labels), 1 - np.mean(labels))
    assert accuracy(found.truth, found.predicted) < majority + 4 * math.sqrt(majority * (1 - majority) / 1500)


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "both"},
        {"top_k": 5},
        {"n_experts": 0},
        {"temperature": 0.0},
        {"dropout": 1.0},
        {"combine": "mean"},
        {"backend": "array", "expert": naive_bayes.GaussianNB()},
    ],
)
def test_bad_options_are_told(options):
    with pytest.raises(UserError):
        small(**options)


OF_PAPER = {
    "top_k": 2,
    "hidden": 32,
    "dropout": 0.1,
    "lr": 1e-3,
    "update_every": 4,
    "combine": "top1",
    "temperature": 1.0,
    "train_rule": "all",
    "warmup_rows": 0,
    "task_rule": "released",
    "neural": False,
}


@pytest.mark.parametrize(("name", "value"), OF_PAPER.items())
def test_the_committee_says_what_it_ignores(name, value):
    default = inspect.signature(DriftMoEClassifier).parameters[name].default
    assert value != default
    DriftMoEClassifier(**{name: default})
    with pytest.warns(UserWarning, match=f"leave {name} out, or set mode to '.*(data|task)'"):
        DriftMoEClassifier(**{name: value})
    DriftMoEClassifier(mode="task" if name == "task_rule" else "data", **{name: value})


def test_every_option_is_used_or_told_of_by_the_committee():
    used = {"expert", "mode", "n_experts", "scale_inputs", "detector", "poisson", "nominal_attributes"}
    used |= {"backend", "seed", "experts", "router"}
    assert set(inspect.signature(DriftMoEClassifier).parameters) == used | set(OF_PAPER)


def test_a_prototype_without_trees_to_replace_is_told():
    with pytest.raises(UserError, match="add 'trees' to experts"):
        DriftMoEClassifier(expert=naive_bayes.GaussianNB(), experts=["mlp"])


@pytest.mark.parametrize("mode", MODES)
def test_a_column_of_identifiers_stays_bounded(mode, monkeypatch):
    monkeypatch.setattr(encoding, "MOST_VALUES", 20)
    model = small(mode)
    rows = [({**x, "id": f"row {t}"}, y) for t, (x, y) in enumerate(synthetic_stream("SEA_a", 300))]
    learned(model, rows)
    assert model._engine.inputs.n_inputs == 3 + 20
    assert model._engine.features.n_values == 20
    assert sum(model.predict_one(x) == y for x, y in rows[100:]) > 140


@pytest.mark.slow
def test_memory_stays_bounded_over_a_million_rows():
    model = DriftMoEClassifier(n_experts=4, seed=1)
    sizes = []
    for t, (x, y) in enumerate(synthetic_stream("SEA_g", 1_000_000), start=1):
        model.predict_one(x)
        model.learn_one(x, y)
        if t % 250_000 == 0:
            sizes.append(len(pickle.dumps(model)))
    leaf = 2 * 3 * 8 * 12
    assert max(sizes) < 5 * 500 * leaf * 2 + 1_000_000
