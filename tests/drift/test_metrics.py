"""Prequential metrics against values worked out by hand, and the order of test and train."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_adapt.drift.metrics import (
    UNANSWERED,
    majority_hits,
    no_change_hits,
    prequential_metrics,
    recovery,
    windowed,
)
from moe_adapt.drift.prequential import test_then_train as run
from moe_adapt.errors import UserError

TRUTH = np.array([0, 0, 1, 1, 1, 0, 1, 1])
PREDICTED = np.array([0, 1, 1, 1, 0, 0, 1, 0])


@pytest.mark.parametrize(("moa", "kappa_m", "kappa_t"), [(False, 0.25, 0.25), (True, -0.5, 0.0)])
def test_oracle(moa, kappa_m, kappa_t):
    found = prequential_metrics(TRUTH, PREDICTED, moa)
    expected = {"accuracy": 0.625, "kappa": 0.25, "kappa_m": kappa_m, "kappa_t": kappa_t, "unanswered": 0.0}
    assert found == pytest.approx(expected)


def test_unanswered_is_wrong():
    found = prequential_metrics(TRUTH, np.where(np.arange(8) < 4, UNANSWERED, TRUTH))
    assert (found["accuracy"], found["unanswered"]) == (0.5, 0.5)


def test_perfect_reference_gives_nan():
    found = prequential_metrics(np.zeros(5, dtype=int), np.zeros(5, dtype=int), moa=True)
    assert found["accuracy"] == 1.0
    assert np.isnan([found["kappa"], found["kappa_m"], found["kappa_t"]]).all()


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40))
def test_references_see_the_past_only(labels):
    truth = np.array(labels)
    majority, previous = majority_hits(truth), no_change_hits(truth)
    for row, label in enumerate(labels):
        past = labels[:row]
        counts = [past.count(c) for c in range(4)]
        assert majority[row] == (bool(past) and counts[label] == max(counts))
        assert previous[row] == (bool(past) and past[-1] == label)


def test_windows():
    truth, predicted = np.zeros(10, dtype=int), np.array([0] * 5 + [1] * 5)
    curves = windowed(truth, predicted, window=4, every=4)
    assert curves["rows"] == [4, 8, 10]
    assert curves["accuracy"] == [1.0, 0.25, 0.0]
    assert curves["cumulative"] == pytest.approx([1.0, 5 / 8, 0.5])
    assert curves["kappa_t"][1] is None


def test_recovery():
    right = [1] * 20 + [0] * 5 + [1] * 15 + [0] * 20
    truth, predicted = np.ones(60, dtype=int), np.array(right)
    first, second = recovery(truth, predicted, [20, 40], window=5)
    assert first == {"drift": 20, "before": 1.0, "lowest": 0.0, "rows": 10}
    assert second == {"drift": 40, "before": 1.0, "lowest": 0.0, "rows": None}


class Recorder:
    def __init__(self):
        self.events = []

    def predict_one(self, x):
        self.events.append(("predict", x["t"]))
        return None if x["t"] == 0 else x["t"] % 2

    def learn_one(self, x, y):
        assert y == x["t"] % 3
        self.events.append(("learn", x["t"]))


def rows(count):
    return [({"t": t}, t % 3) for t in range(count)]


def test_every_row_is_tested_before_it_is_trained_on():
    model = Recorder()
    found = run(model, rows(6), block=4, memory=False)
    assert model.events == [(what, t) for t in range(6) for what in ("predict", "learn")]
    assert found.labels == [0, 1, 2]
    assert found.truth.tolist() == [0, 1, 2, 0, 1, 2]
    assert found.predicted.tolist() == [UNANSWERED, 1, 0, 1, 0, 1]
    assert found.rows == [4, 6]
    assert found.seconds_at == sorted(found.seconds_at)


def test_late_labels_reach_the_learner_with_their_own_rows():
    model = Recorder()
    run(model, rows(6), delay=2, memory=False)
    learned = [t for what, t in model.events if what == "learn"]
    assert learned == [0, 1, 2, 3]
    assert model.events.index(("learn", 0)) > model.events.index(("predict", 2))


def test_a_delay_is_rivers_less_the_row_itself():
    from river import evaluate, metrics, tree

    from moe_adapt.drift.streams import synthetic_stream

    stream = synthetic_stream("SEA_a", 600)
    metric = metrics.Accuracy()
    evaluate.progressive_val_score(iter(stream), tree.HoeffdingTreeClassifier(), metric, delay=51)
    found = run(tree.HoeffdingTreeClassifier(), stream, delay=50, memory=False)
    answered = found.predicted != UNANSWERED
    assert answered.sum() == 549, "River leaves rows out that have no answer"
    assert metric.get() == pytest.approx((found.truth == found.predicted)[answered].mean())


def test_mistakes_are_told():
    with pytest.raises(UserError, match="empty"):
        run(Recorder(), [])
    with pytest.raises(UserError, match="delay"):
        run(Recorder(), rows(2), delay=-1)
