"""Who is first, by how much: which seeds are compared, which interval, which words."""

import math

import pytest

from moe_adapt.drift.comparison.leads import Lead, lead, lead_table


def cell(seed, right, rows=400):
    return {"seed": seed, "rows": rows, "right": " ".join(map(str, right)), "accuracy": sum(right) / rows}


OURS = [cell(1, [90, 80, 90, 80]), cell(2, [92, 82, 92, 82])]


def test_the_best_rival_is_compared_over_all_seeds_of_the_same_rows():
    methods = {"ours": OURS, "weak": [cell(1, [9, 9, 9, 9])], "strong": [cell(3, [70, 60, 70, 60])]}
    found = lead(methods, "ours", ["weak", "strong"], same_rows=True)
    assert (found.rival, found.seeds) == ("strong", (2, 1))
    assert found.points == pytest.approx(21)
    assert 0 < found.low < found.high
    assert found.place == "first"


def test_seeds_with_rows_of_their_own_are_paired():
    other = [cell(2, [93, 83, 93, 83]), cell(3, [1, 1, 1, 1])]
    found = lead({"ours": OURS, "other": other}, "ours", ["other"], same_rows=False)
    assert found.seeds == (1, 1)
    assert (found.points, found.low, found.high) == pytest.approx((-1, -1, -1))
    assert found.place == "behind by 1.00"


def test_accuracies_alone_give_students_interval_over_paired_seeds():
    bare = [{"seed": seed, "rows": 400, "accuracy": 0.8} for seed in (1, 2)]
    found = lead({"ours": OURS, "bare": bare}, "ours", ["bare"], same_rows=False)
    assert (found.low + found.high) / 2 == pytest.approx(found.points)
    assert found.high - found.points == pytest.approx(100 * 12.7062 * 0.01, abs=1e-3)
    assert found.place == "within the interval of the first"
    alone = lead({"ours": OURS, "bare": bare[:1]}, "ours", ["bare"], same_rows=False)
    assert math.isnan(alone.low)
    assert alone.place == "no interval"


def test_a_stream_without_rival_has_no_line():
    assert lead({"ours": OURS}, "ours", ["other"], same_rows=True) is None
    results = {"s": {"ours": OURS, "ours_too": OURS}, "t": {"ours": OURS, "other": [cell(1, [9, 9, 9, 9])]}}
    lines = lead_table(results, "ours", {"s": True, "t": True}, ["ours_too"])
    assert len(lines) == 3
    assert lines[2].startswith("| t | 86.00 (2) | other | 9.00 (1) | +77.00 [")


def test_places_are_told_by_the_interval():
    ends = {"first": (0.1, 2), "within the interval of the first": (-1, 1), "behind by 1.00": (-2, -0.1)}
    for place, (low, high) in ends.items():
        assert Lead("other", (1, 1), (79.0, 80.0), low, high).place == place
