"""Short and long memory by hand: windows, what a row contradicts, limits, and a rule that comes back."""

import numpy as np
import pytest

from moe_adapt.drift.committee.memories import LEVELS, UNKNOWN, Memories, Memory, _contradicted
from moe_adapt.drift.driftmoe import DriftMoEClassifier


def learn(memories, rows, labels):
    """Learn rows and return which were answered right before."""
    right = []
    for vector, y in zip(rows, labels, strict=True):
        right.append(memories.proba(vector, 2).argmax() == y)
        memories.add(vector, int(y), 1.0)
    return np.array(right)


def made(n_inputs=2, most=2500):
    found = Memories(most)
    found.grow(n_inputs)
    return found


def test_few_rows_answer_by_the_five_nearest():
    rng = np.random.default_rng(0)
    memories, rows, labels = made(3), rng.normal(size=(40, 3)), rng.integers(2, size=40)
    for t, (vector, y) in enumerate(zip(rows, labels, strict=True)):
        memories.proba(vector, 2)
        gaps = np.sqrt(((rows[:t] - vector) ** 2).sum(axis=1))
        votes = np.full(2, 0.01)
        for near in np.argsort(gaps)[:5]:
            votes[labels[near]] += 1 / (gaps[near] + 0.001)
        assert memories._answers[0] == pytest.approx(votes / votes.sum())
        assert memories._answers[2] == pytest.approx(memories._answers[0]), "the long memory is empty"
        memories.add(vector, int(y), 1.0)
    assert (memories.short.rows == rows).all()


def test_what_the_short_memory_contradicts():
    short = Memory(20)
    short.grow(1)
    short.add(np.array([[0.0], [0.1], [5.0]]), np.array([0, 0, 1]), np.ones(3))
    old = np.array([[0.05], [0.06], [4.9], [9.0]])
    # the rows of label 0 reach to each other, 0.1; that at 5 has no other row of its label and removes none
    assert _contradicted(short, old, np.array([1, 0, 0, 1])).tolist() == [True, False, False, False]


def test_a_new_row_cleans_the_long_memory():
    memories = made(1)
    memories.long.add(np.array([[0.0], [0.2], [3.0]]), np.array([1, 0, 1]), np.ones(3))
    learn(memories, np.array([[0.5], [0.1]]), [0, 0])
    assert memories.long.labels.tolist() == [0, 1], "only the other label within the reach goes"


def test_an_abrupt_drift_shortens_the_memory_and_a_slow_one_does_not():
    rng = np.random.default_rng(1)
    rows = rng.uniform(-1, 1, size=(1200, 2))
    labels = (rows[:, 0] > 0).astype(int)
    steady = made()
    learn(steady, rows, labels)
    assert len(steady.short) > 600
    labels[800:] = 1 - labels[800:]
    turned = made()
    learn(turned, rows, labels)
    assert len(turned.short) < 450
    kept = turned.short.rows
    assert ((kept[:, 0] > 0).astype(int) != turned.short.labels).mean() > 0.85
    against = turned.long.labels == (turned.long.rows[:, 0] > 0)
    assert against.sum() < 100, "rows of the old rule were contradicted"


def test_the_long_memory_knows_a_region_that_the_short_one_has_left():
    rng = np.random.default_rng(2)
    noise = rng.uniform(-1, 1, size=(2000, 2))
    place = np.repeat([0, 1], 1000)
    rows = noise + 6 * place[:, None]
    labels = ((noise[:, 0] > 0) ^ (place == 1)).astype(int)
    memories = made(most=400)
    learn(memories, rows, labels)
    assert (memories.short.rows[:, 1] > 3).all() and (memories.long.rows[:, 1] < 3).any()
    back = rng.uniform(-1, 1, size=(60, 2))
    right = learn(memories, back, (back[:, 0] > 0).astype(int))
    assert right.mean() > 0.8


def test_limits_hold_and_windows_move_with_their_rows():
    rng = np.random.default_rng(3)
    memories = made(most=200)
    learn(memories, rng.normal(size=(1500, 2)), rng.integers(2, size=1500))
    for memory in (memories.short, memories.long):
        assert 0 < len(memory) <= 200
        assert memory.squares == pytest.approx((memory.rows**2).sum(axis=1))
    right = memories.short.right
    assert right.shape == (len(memories.short), LEVELS)
    assert (right[:, 3:] == UNKNOWN).all(), "200 rows have windows of 200, 100 and 50 rows"
    assert set(np.unique(right)) <= {UNKNOWN, 0, 1}


def test_the_voice_is_asked_for_by_name():
    model = DriftMoEClassifier(experts=["linear", "samknn"], seed=1)
    assert type(model._engine).__name__ == "CommitteeEngine"
    rng = np.random.default_rng(4)
    right = 0
    for a, b in rng.uniform(-1, 1, size=(400, 2)):
        x, y = {"a": a, "b": b}, bool(a * b > 0)
        right += model.predict_one(x) == y
        model.learn_one(x, y)
    assert right > 330, "no linear model knows a chessboard"
    assert model.explain_one(x)["voices"]["samknn"]["accuracy"] > 0.85
