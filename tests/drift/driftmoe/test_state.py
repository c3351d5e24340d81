"""Saving in the middle of a stream and going on."""

import numpy as np
import pytest
from river import naive_bayes

from moe_adapt.drift.driftmoe import DriftMoEClassifier
from moe_adapt.drift.driftmoe.state import driftmoe_from_state, driftmoe_state
from moe_adapt.drift.streams import real_stream, synthetic_stream
from moe_adapt.errors import UserError
from moe_adapt.learners import Learner

STREAMS = {
    "numbers": lambda: list(synthetic_stream("RBF_f", 700)),
    "nominal": lambda: list(synthetic_stream("AGR_a", 700)),
    "words": lambda: [
        ({**x, "word": "ab c"[int(x["attrib1"]) % 4]}, f"class {y}")
        for x, y in synthetic_stream("SEA_a", 700)
    ],
    "late": lambda: list(real_stream("image_segments", 400)),
}


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"backend": "array", "router": True},
        {"experts": ("mlp", "neighbours")},
        {"experts": ("linear", "samknn")},
        {"mode": "data"},
        {"mode": "task"},
        {"mode": "data", "train_rule": "all", "poisson": 1.0, "detector": False},
    ],
)
def test_goes_on_as_if_never_saved(stream, options, tmp_path):
    rows = STREAMS[stream]()
    nominal = ("elevel", "car", "zipcode") if stream == "nominal" else None
    model = DriftMoEClassifier(n_experts=4, seed=1, nominal_attributes=nominal, **options)
    half = len(rows) // 2 + 3
    for x, y in rows[:half]:
        model.learn_one(x, y)
    model.save_pretrained(tmp_path / "model")
    assert {path.suffix for path in (tmp_path / "model").iterdir()} == {".json", ".safetensors", ".md"}
    loaded = DriftMoEClassifier.from_pretrained(tmp_path / "model")
    assert loaded._get_params() == model._get_params()
    for x, y in rows[half:]:
        assert loaded.predict_proba_one(x) == model.predict_proba_one(x)
        loaded.learn_one(x, y)
        model.learn_one(x, y)
    assert loaded.events == model.events
    assert loaded.expert_rows == model.expert_rows


@pytest.mark.parametrize("rows", [210, 700])
def test_a_ring_kept_without_relevance_is_taken_over(rows):
    model = DriftMoEClassifier(experts=("linear", "neighbours"), seed=1)
    for x, y in synthetic_stream("SEA_a", rows):
        model.learn_one(x, y)
    state, arrays = driftmoe_state(model)
    ring, places = model._engine.neighbours, (np.arange(rows)[-500:]) % 500
    former = {"rows": np.zeros((3, 500)), "labels": np.zeros(500, dtype=np.int64), "weights": np.zeros(500)}
    for name, array in former.items():
        array[..., places] = getattr(ring, name)[..., :rows][..., -500:]
        arrays[f"ring/{name}"] = array
    del arrays["ring/gaps"], arrays["ring/answers"]
    loaded = driftmoe_from_state(DriftMoEClassifier, state, arrays)
    again = loaded._engine.neighbours
    assert again.seen == len(places) and (again.relevance == 1.0).all()
    assert (again.rows[:, : again.seen] == ring.rows[:, :rows][:, -500:]).all()
    loaded.learn_one(x, y)
    assert loaded.predict_one(x) is not None


def test_an_untrained_model_can_be_kept(tmp_path):
    DriftMoEClassifier(seed=1).save_pretrained(tmp_path / "model")
    loaded = DriftMoEClassifier.from_pretrained(tmp_path / "model")
    fresh = DriftMoEClassifier(seed=1)
    for x, y in synthetic_stream("SEA_a", 250):
        loaded.learn_one(x, y)
        fresh.learn_one(x, y)
    assert loaded.predict_proba_one(x) == fresh.predict_proba_one(x)


def test_mistakes_are_told(tmp_path):
    model = DriftMoEClassifier(seed=1)
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match="not empty"):
        model.save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match="River"):
        DriftMoEClassifier(expert=naive_bayes.GaussianNB()).save_pretrained(tmp_path / "other")
    model.learn_one({("a", 1): 2.0}, "x")
    with pytest.raises(UserError, match="JSON"):
        model.save_pretrained(tmp_path / "other")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    with pytest.raises(UserError, match="holds no learner"):
        DriftMoEClassifier.from_pretrained(tmp_path)
    with pytest.raises(UserError, match="no backbone"):
        DriftMoEClassifier.from_pretrained(tmp_path / "model", backbone=model)
    with pytest.raises(UserError, match="it holds a DriftMoEClassifier, not a Learner"):
        Learner.from_pretrained(tmp_path / "model")


def test_the_card_says_how_to_go_on(tmp_path):
    model = DriftMoEClassifier(seed=1)
    for x, y in synthetic_stream("SEA_a", 200):
        model.learn_one(x, y)
    card = (model.save_pretrained(tmp_path / "model") / "README.md").read_text()
    for words in (
        "after 200 rows with 2 labels",
        "DriftMoEClassifier.from_pretrained",
        "tabular-classification",
    ):
        assert words in card


@pytest.mark.parametrize(("place", "value"), [(0, np.nan), (0, 1e200), (1, -np.inf), (2, -1e-3)])
def test_networks_that_nobody_trained_are_refused(place, value):
    model = DriftMoEClassifier(seed=1)
    for x, y in synthetic_stream("SEA_a", 200):
        model.learn_one(x, y)
    content, tensors = model.to_parts()
    damaged = tensors["mlp/values"].clone()
    damaged[place, 3] = value
    with pytest.raises(UserError, match="no result of training"):
        DriftMoEClassifier.from_parts(content, {**tensors, "mlp/values": damaged}, None)
