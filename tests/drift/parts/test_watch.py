"""The drift detector, for all experts at once."""

import numpy as np
import pytest

from moe_adapt.drift.parts.watch import ErrorWatch


def alarms(rates, rows, seed=0):
    draw, watch, found = np.random.default_rng(seed), ErrorWatch(len(rates[0])), []
    for part in rates:
        for _ in range(rows):
            for expert in watch.update(draw.random(len(part)) < part):
                found.append((int(watch.rows[expert]), expert))
                watch.forget(expert)
    return found


def test_a_rise_is_found_and_only_where_it_is():
    found = alarms([np.array([0.2, 0.2, 0.5]), np.array([0.6, 0.2, 0.5])], 1000)
    assert {expert for _, expert in found} == {0}
    assert 1000 < found[0][0] < 1200


@pytest.mark.parametrize("rates", [[np.full(4, 0.3)], [np.full(4, 0.5), np.full(4, 0.1)]])
def test_a_steady_or_falling_error_is_no_alarm(rates):
    assert len(alarms(rates, 2000)) <= 2


def test_forgetting_starts_afresh():
    watch = ErrorWatch(2)
    for _ in range(64):
        watch.update(np.array([True, False]))
    watch.forget(0)
    assert watch.rows.tolist() == [0.0, 64.0]
