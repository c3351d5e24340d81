"""The compiled row path and the plain one are the same model: answers to 1e-9, trees split for split."""

import pickle

import numpy as np
import pytest
from river.checks import check_estimator

from moe_adapt.drift.driftmoe import DriftMoEClassifier
from moe_adapt.drift.streams import real_stream, synthetic_stream
from moe_adapt.errors import UserError

pytest.importorskip("numba", reason="the compiled path needs numba")


def mixed(rows):
    """Numbers and words, some missing, values and classes that come late."""
    draw = np.random.default_rng(3)
    for t in range(rows):
        x = {"a": draw.normal(), "b": draw.normal() * 1e3, "word": "uvwxyz"[int(draw.integers(3 + t // 200))]}
        if t % 7 == 0:
            x["a"] = None
        if t % 11 == 0:
            del x["word"]
        if t > 150:
            x["late"] = draw.normal()
        yield x, f"class {int(draw.integers(2 + t // 250))}" if t % 3 else "often"


STREAMS = {
    "LED": lambda: (synthetic_stream("LED_a", 600), None),
    "AGR": lambda: (synthetic_stream("AGR_g", 500), None),
    "RBF": lambda: (synthetic_stream("RBF_f", 500), {"router": True}),
    "SEA": lambda: (synthetic_stream("SEA_a", 700), {"experts": ("trees", "linear")}),
    "images": lambda: (real_stream("image_segments", 500), None),
    "mixed": lambda: (mixed(700), {"n_experts": 5}),
    "unscaled": lambda: (synthetic_stream("SEA_g", 400), {"scale_inputs": False, "poisson": 1.0}),
}


def both(options=None, nominal=()):
    settings = {"seed": 1, "nominal_attributes": tuple(sorted(nominal)) or None, **(options or {})}
    return [DriftMoEClassifier(backend=backend, **settings) for backend in ("array", "compiled")]


def leaves(model):
    return model._engine.trees.experts.pool.n_leaves


@pytest.mark.parametrize("name", STREAMS)
def test_both_paths_give_the_same_answers(name):
    stream, options = STREAMS[name]()
    plain, compiled = both(options, getattr(stream, "nominal", ()))
    for x, y in stream:
        expected, found = plain.predict_proba_one(x), compiled.predict_proba_one(x)
        assert found.keys() == expected.keys()
        assert max((abs(found[label] - expected[label]) for label in found), default=0) < 1e-9
        assert compiled.predict_one(x) == max(found, key=found.get, default=None)
        plain.learn_one(x, y)
        compiled.learn_one(x, y)
    assert leaves(plain) == leaves(compiled) and max(leaves(plain)) > 1
    assert plain.events == compiled.events and plain.drifts == compiled.drifts
    assert plain.expert_rows == compiled.expert_rows
    assert plain.feature_importances == pytest.approx(compiled.feature_importances)
    one, other = plain.explain_one(x)["voices"], compiled.explain_one(x)["voices"]
    assert {v: one[v]["weight"] for v in one} == pytest.approx({v: other[v]["weight"] for v in other})


def test_river_checks_without_skips():
    check_estimator(DriftMoEClassifier(backend="compiled", seed=1))


def test_of_equal_labels_the_first_by_name_is_the_answer():
    for model in both({"experts": ("neighbours",)}):
        model.learn_one({"a": 0.0}, "b")
        model.learn_one({"a": 0.0}, "a")
        assert model.predict_proba_one({"a": 0.0}) == {"a": 0.5, "b": 0.5}
        assert model.predict_one({"a": 0.0}) == "a"


def test_labels_that_come_late_give_the_same_answers():
    plain, compiled = both({"experts": ("trees", "neighbours")})
    waiting = []
    for x, y in synthetic_stream("RBF_m", 300):
        assert plain.predict_proba_one(x) == pytest.approx(compiled.predict_proba_one(x), abs=1e-9)
        waiting.append((x, y))
        if len(waiting) > 20:
            old = waiting.pop(0)
            plain.learn_one(*old)
            compiled.learn_one(*old)


def test_rows_without_news_make_no_room(monkeypatch):
    _, model = both()
    made = []
    rows = [({"a": float(t % 5), "b": 1.0 if t % 3 == 2 else None}, t % 2) for t in range(60)]
    model.learn_one(*rows[0])
    fit = model._engine.fit
    monkeypatch.setattr(model._engine, "fit", lambda: made.append(1) or fit())
    for x, y in rows[1:]:
        model.learn_one(x, y)
    assert len(made) == 2, "the second column and the second class"


def test_weights_give_the_same_answers():
    plain, compiled = both()
    for t, (x, y) in enumerate(synthetic_stream("SEA_a", 300)):
        for model in (plain, compiled):
            model.learn_one(x, y, w=(0.0, 0.5, 1.0, 3.0)[t % 4])
    assert plain.predict_proba_one(x) == pytest.approx(compiled.predict_proba_one(x), abs=1e-9)


def test_a_pickle_goes_on():
    model = both()[1]
    rows = list(synthetic_stream("AGR_a", 400))
    for x, y in rows[:200]:
        model.learn_one(x, y)
    copy = pickle.loads(pickle.dumps(model))
    for x, y in rows[200:]:
        assert copy.predict_proba_one(x) == model.predict_proba_one(x)
        copy.learn_one(x, y)
        model.learn_one(x, y)


def test_a_model_kept_by_one_path_goes_on_in_the_other(tmp_path):
    rows = list(synthetic_stream("AGR_a", 500))
    nominal = ("elevel", "car", "zipcode")
    model = DriftMoEClassifier(seed=1, backend="compiled", nominal_attributes=nominal)
    for x, y in rows[:300]:
        model.learn_one(x, y)
    state, arrays = model.to_parts()
    state["state"]["settings"]["backend"] = "array"
    plain = DriftMoEClassifier.from_parts(state, arrays, None)
    assert plain._engine.make_pool().__class__.__name__ == "PoolExperts"
    for x, y in rows[300:]:
        assert plain.predict_proba_one(x) == pytest.approx(model.predict_proba_one(x), abs=1e-9)
        plain.learn_one(x, y)
        model.learn_one(x, y)


def test_what_it_cannot_do_is_told(monkeypatch):
    from river import drift, naive_bayes

    for options in (
        {"experts": ("mlp", naive_bayes.GaussianNB())},
        {"experts": ("trees", "samknn")},
        {"detector": drift.ADWIN()},
    ):
        with pytest.raises(UserError, match="backend='auto'"):
            DriftMoEClassifier(backend="compiled", **options)
    monkeypatch.setattr("moe_adapt.drift.compiled.available", lambda: False)
    with pytest.raises(UserError, match="numba"):
        DriftMoEClassifier(backend="compiled")
    assert type(DriftMoEClassifier()._engine).__name__ == "CommitteeEngine"
