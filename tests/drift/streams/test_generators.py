"""Our rows against rows that MOA printed (seed 1): the first row, its label, class counts of 10,000 rows."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest

from moe_adapt.drift.streams.agrawal import Agrawal
from moe_adapt.drift.streams.generators import LED, LED_BAYES, SEA, Hyperplane
from moe_adapt.drift.streams.java_random import JavaRandom
from moe_adapt.drift.streams.mixture import DriftMixture, chain
from moe_adapt.drift.streams.random_tree import RandomTree
from moe_adapt.drift.streams.rbf import RandomRBF
from moe_adapt.drift.streams.suites import SUITES, synthetic_stream
from moe_adapt.errors import UserError

ROW = {
    "led": [1, 1, 0, 1, 1, 1, 0, 1, 1, 0, 0, 1, 0, 1, 1, 1, 1, 1, 0, 0, 1, 0, 0, 0],
    "sea": [7.308782, 4.100808, 2.077148],
    "agrawal": [110499.735409, 0, 54, 3, 14, 4, 135000, 30, 354724.182530],
    "rbf": [
        0.210411,
        1.009618,
        0.091932,
        0.272094,
        0.450159,
        0.226131,
        0.212318,
        0.372707,
        0.583169,
        0.297019,
    ],
    "hyperplane": [
        0.397174,
        0.347518,
        0.294057,
        0.506484,
        0.115967,
        0.770536,
        0.659893,
        0.156747,
        0.378202,
        0.139763,
    ],
    "tree": [0, 3, 2, 3, 4, 0.036235, 0.658867, 0.710740, 0.152736, 0.159578],
}
ORACLES = [
    (LED(1), "led", 5, [913, 1027, 986, 1009, 981, 1050, 1010, 1002, 1025, 997]),
    (SEA(1), "sea", 1, [3619, 6381]),
    (SEA(4), "sea", 1, [4667, 5333]),
    (Agrawal(1), "agrawal", 1, [6754, 3246]),
    (Agrawal(2), "agrawal", 0, [3895, 6105]),
    (Agrawal(4), "agrawal", 1, [3822, 6178]),
    (RandomRBF(5, 1e-4), "rbf", 4, [2586, 1631, 1798, 960, 3025]),
    (Hyperplane(), "hyperplane", 0, [5001, 4999]),
    (RandomTree(), "tree", 0, [4096, 5904]),
    (chain([SEA(f) for f in (1, 2, 1, 4)], [2500, 5000, 7500], 50), "sea", 1, [4053, 5947]),
    (
        chain([LED(d) for d in (1, 3, 5, 7)], [2500, 5000, 7500], 500),
        "led",
        5,
        [1004, 1148, 952, 964, 964, 1028, 984, 956, 964, 1036],
    ),
]


@pytest.mark.parametrize(("concept", "row", "label", "counts"), ORACLES)
def test_rows_are_those_of_moa(concept, row, label, counts):
    rows = list(islice(iter(concept), 10_000))
    assert rows[0][0][: len(ROW[row])] == pytest.approx(ROW[row], abs=1e-6)
    assert rows[0][1] == label
    found = Counter(y for _, y in rows)
    assert [found[c] for c in range(concept.n_classes)] == counts


def test_more_values_of_moa():
    fast = [values for values, _ in islice(iter(RandomRBF(5, 1e-3)), 10_000)]
    assert fast[0][:5] == pytest.approx([0.210761, 1.009902, 0.092216, 0.272299, 0.450540], abs=1e-6)
    assert np.mean([values[0] for values in fast]) == pytest.approx(0.575655, abs=1e-6)
    *_, last = islice(iter(ORACLES[9][0]), 10_000)
    assert last[0] == pytest.approx([7.072380, 1.739848, 0.324357], abs=1e-6)
    assert last[1] == 0


def test_draws_of_the_java_platform():
    random = JavaRandom(42)
    assert [random.integer(100) for _ in range(5)] == [30, 63, 48, 84, 70]
    assert JavaRandom(42).uniform() == 0.7275636800328681
    assert JavaRandom(42).normal() == pytest.approx(1.1419053154730547)
    assert JavaRandom(42).integer(16) == JavaRandom(42)._bits(4)


def test_noise_is_exact():
    random = JavaRandom(3)
    share = np.mean([random.percent(10) for _ in range(50_000)])
    assert share == pytest.approx(0.1, abs=4 * (0.09 / 50_000) ** 0.5)


def test_bayes_accuracy_of_led_by_enumeration():
    segments = np.array(_digits())
    for noise, expected in LED_BAYES.items():
        p = noise / 100
        patterns = np.array(list(np.ndindex(*[2] * 7)))
        wrong = (patterns[:, None] != segments[None]).sum(axis=2)
        likely = p**wrong * (1 - p) ** (7 - wrong)
        assert likely.max(axis=1).sum() / 10 == pytest.approx(expected, abs=1e-6)


def _digits() -> list[list[int]]:
    seen: dict[int, list[int]] = {}
    for values, label in islice(iter(LED(0, noise=0)), 500):
        seen.setdefault(label, values[:7])
    return [seen[digit] for digit in range(10)]


@pytest.mark.parametrize("function", range(1, 11))
def test_every_agrawal_function_has_both_groups(function):
    labels = [y for _, y in islice(iter(Agrawal(function)), 2000)]
    assert 0 < sum(labels) < 2000


@pytest.mark.parametrize("suite", SUITES)
def test_streams_restart_and_follow_their_seed(suite):
    for name in SUITES[suite]:
        stream = synthetic_stream(name, 400, seed=3, suite=suite)
        rows = list(stream)
        assert rows == list(stream)
        assert len(rows) == len(stream) == 400
        assert all(tuple(x) == stream.features for x, _ in rows)
        assert {y for _, y in rows} <= set(range(stream.n_classes))
        assert rows != list(synthetic_stream(name, 400, seed=4, suite=suite))


def test_definitions_of_the_suites():
    assert synthetic_stream("LED_a").drifts == (250_000, 500_000, 750_000)
    assert synthetic_stream("SEA_g", suite="driftmoe").drifts == (225_000, 475_000, 725_000)
    assert synthetic_stream("RBF_f", 100).n_classes == 5
    assert synthetic_stream("RBF_f", 100, suite="driftmoe").n_classes == 2


def test_a_narrow_drift_far_away_does_not_overflow():
    far = DriftMixture(SEA(1), SEA(2), position=1_000_000, width=1)
    assert list(islice(iter(far), 50)) == list(islice(iter(SEA(1)), 50))


@pytest.mark.parametrize(
    "options", [{"name": "LED_b"}, {"name": "LED_a", "suite": "moa"}, {"name": "SEA_a", "n_rows": 10}]
)
def test_mistakes_are_told(options):
    with pytest.raises(UserError):
        synthetic_stream(**options)
