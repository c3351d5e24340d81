"""Intervals of the composition benchmark: pairs of one seed do not count as independent ones."""

import numpy as np
import pytest

from tests.markdown import REPOSITORY


@pytest.fixture
def intervals(monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks" / "compose"))
    import intervals

    return intervals


def bounds(text):
    return [float(part) for part in text.partition("[")[2].rstrip("]").split(",")]


def test_more_customers_of_the_same_seeds_do_not_narrow_the_interval(intervals):
    few, many = ([[value] * count for value in (0.0, 0.1, 0.2)] for count in (2, 50))
    assert intervals.nested(few) == intervals.nested(many) == "+10.0 [+0.0, +20.0]"


def test_seeds_that_agree_leave_what_differs_within_them(intervals):
    values = np.linspace(-0.1, 0.1, 16).tolist()
    low, high = bounds(intervals.nested([values] * 3))
    error = 100 * np.std(values) / 48**0.5
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.1)


def test_one_seed_has_no_interval(intervals):
    assert intervals.nested([[0.1, 0.3]]) == "+20.0"
    assert intervals.paired([0.2]) == "+20.0"


def test_a_difference_is_told_in_favour_of_the_reference(intervals):
    cells = [
        {"accuracy": {intervals.REFERENCE: {"a": 0.9, "mean": 0.9}, "base": {"a": value, "mean": value}}}
        for value in (0.5, 0.7)
    ]
    assert intervals.task_row(cells, "base").resampled.startswith("+30.0 [")
    assert intervals.task_row(cells, intervals.REFERENCE).resampled == ""
    assert intervals.task_row(cells, "absent") == intervals.Row()


def test_answers_that_are_written_are_compared_row_by_row(intervals):
    written = {
        intervals.REFERENCE: {"a": [True] * 8, "b": [True] * 8},
        "base": {"a": [False] * 8, "b": [True] * 8},
    }
    cells = [{"written": written}, {}]
    row = intervals.writing_row(cells, "base")
    assert (row.accuracy, row.resampled) == ("50.0 (1 of 2 seeds)", "+50.0 [+50.0, +50.0]")
    assert intervals.writing_row(cells, intervals.REFERENCE).resampled == ""
    assert intervals.writing_row(cells, "absent") == intervals.Row()
    low, high = bounds(intervals.over_rows([[0.0, 1.0] * 50]))
    assert (high - low) / 2 == pytest.approx(1.96 * 5, rel=0.1)
