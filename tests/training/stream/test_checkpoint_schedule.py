import time

import pytest

from moe_adapt.training.stream.checkpoint_schedule import CheckpointSchedule


class Clock:
    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)


@pytest.mark.parametrize(("task", "write"), [(0.1, 0.5), (10.0, 0.05), (0.02, 0.02)])
def test_writes_take_their_share_of_the_time_and_no_more(monkeypatch, task, write):
    clock = Clock(monkeypatch)
    schedule, written, waits = CheckpointSchedule("auto", 3000, share=0.01), 0.0, [0.0]
    for index in range(3000):
        clock.now += task
        waits[-1] += task
        if schedule.due(index):
            with schedule.writing():
                clock.now += write
            written += write
            waits.append(0.0)
    assert written <= 0.011 * clock.now + 2 * write
    assert max(waits) <= 100 * write + 1.001 * task  # what a kill loses at most
    if task > 100 * write:
        assert len(waits) == 3001
    assert waits[-1] == 0.0  # the last task has one


def test_schedules():
    assert [i for i in range(10) if CheckpointSchedule("every=4", 10).due(i)] == [3, 7, 9]
    assert [i for i in range(3) if CheckpointSchedule("all", 3).due(i)] == [0, 1, 2]
