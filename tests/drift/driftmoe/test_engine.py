"""Who learns a row: experts in their warm-up, and the reserve tree that takes an expert's place."""

from itertools import islice

import numpy as np
import pytest

from moe_adapt.drift.driftmoe import DriftMoEClassifier
from moe_adapt.drift.streams import synthetic_stream

OPTIONS = {"mode": "data", "n_experts": 4, "top_k": 1, "hidden": 16, "seed": 1, "poisson": 0, "neural": False}


def engine_of(rows, warmup_rows=0, detector=True, alarms=(), **options):
    """An engine after some rows; the detector alarms for the first expert at the given rows."""
    settings = {**OPTIONS, "warmup_rows": warmup_rows, "detector": detector, **options}
    model = DriftMoEClassifier(**settings)
    engine = model._engine
    if detector:
        engine.watch.update = lambda wrong: [0] if engine.events["rows"] in alarms else []
    before = None
    for row, (x, y) in enumerate(islice(synthetic_stream("SEA_a", 2000), rows)):
        if row in alarms:
            before = answers(engine, PROBES), list(engine.learned)
        model.learn_one(x, y)
    return engine, before


PROBES = [x for x, _ in islice(synthetic_stream("SEA_a", 2000, seed=9), 20)]


def answers(engine, rows):
    return np.stack(
        [engine.trees.read(engine.features.read(x), x, engine.expert_labels).proba.copy() for x in rows]
    )


@pytest.mark.parametrize("warmup_rows", [40, 75])
def test_every_expert_learns_each_row_of_its_warm_up(warmup_rows):
    engine, _ = engine_of(warmup_rows, warmup_rows, detector=False)
    assert engine.learned == [warmup_rows] * 4
    engine, _ = engine_of(warmup_rows + 60, warmup_rows, detector=False, train_rule="routed")
    assert min(engine.learned) >= warmup_rows
    assert sum(engine.learned) == 4 * warmup_rows + 60, "afterwards one expert learns a row"


def test_without_a_warm_up_only_chosen_experts_learn():
    engine, _ = engine_of(60, detector=False, train_rule="routed")
    assert sum(engine.learned) == 60


def test_the_reserve_learns_every_row():
    engine, _ = engine_of(120)
    assert len(engine.learned) == 5 and engine.learned[4] == 120


def test_the_reserve_takes_the_place_of_an_expert_that_alarmed():
    engine, (before, learned) = engine_of(101, alarms=[100])
    assert learned[4] == 100
    assert engine.learned[0] == 101, "the row of the alarm included"
    assert engine.learned[4] == 0 and engine.events["replaced"] == 1
    now = answers(engine, PROBES)
    assert np.abs(now[:, 0] - before[:, 4]).max() < 0.05, "what the reserve knew, but for one row"
    assert np.abs(now[:, 4] - 0.5).max() < 1e-9, "the new reserve knows nothing"


@pytest.mark.parametrize(("rows", "taken"), [(48, False), (49, True)])
def test_a_reserve_of_fewer_than_fifty_rows_is_not_taken(rows, taken):
    engine, _ = engine_of(rows + 1, alarms=[rows])
    assert engine.learned[0] == (50 if taken else 0)
    assert engine.learned[4] == (0 if taken else 49)
    if not taken:
        assert np.abs(answers(engine, PROBES)[:, 0] - 0.5).max() < 1e-9, "the expert starts afresh"


def test_the_reserve_starts_afresh_after_a_thousand_rows():
    engine, _ = engine_of(999)
    assert engine.learned[4] == 999
    engine, _ = engine_of(1007)
    assert engine.learned[4] == 7
    assert engine.events["replaced"] == 0
