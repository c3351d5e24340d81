"""Who is ahead of whom in a comparison, in numbers and in words, and what the report makes of it."""

import re

import pytest

from moe_adapt.drift.comparison.report import drift_report
from moe_adapt.drift.comparison.standing import accuracy_interval, our_methods, standings, verdict_sentence


def cell(stream, method, seed, right, rows=400, kind=None, drifts=(), **changes):
    accuracy = sum(right) / rows
    return {
        "settings": {"stream": {"name": stream}, "method": {"kind": kind or method}},
        "seed": seed,
        "rows": rows,
        "accuracy": accuracy,
        "kappa": accuracy,
        "kappa_m": accuracy,
        "kappa_t": accuracy,
        "cpu_us_per_row": 10.0,
        "model_mb": None,
        "right": " ".join(map(str, right)),
        "window": 50,
        "bayes": None,
        "drifts": list(drifts),
        "recovery": [],
        "curves": {"rows": [100, 200, 300, 400], "accuracy": [count / 100 for count in right]},
        "expert_load": {"rows": [], "share": []},
        **changes,
    }


def results(**streams):
    """Return results of methods that had so many rows right in every hundred, with one seed."""
    return {
        stream: {method: [cell(stream, method, 1, right)] for method, right in methods.items()}
        for stream, methods in streams.items()
    }


FOUND = results(
    clear={"majority": [50] * 4, "driftmoe": [90] * 4, "arf10": [80] * 4},
    close={"driftmoe": [80, 90, 70, 80], "arf10": [90, 95, 60, 76]},
    lost={"driftmoe": [60] * 4, "arf10": [70] * 4, "majority": [10] * 4},
)


def test_the_best_other_method_and_the_side():
    clear, close, lost = standings(FOUND)
    assert (clear.rival, clear.side, clear.ends) == ("arf10", "ahead", (pytest.approx(10), pytest.approx(10)))
    assert (close.side, close.lead) == ("level", pytest.approx(-0.25))
    assert close.ends[0] < 0 < close.ends[1]
    assert (lost.rival, lost.side, lost.lead) == ("arf10", "behind", pytest.approx(-10))


def test_the_sentence_says_who_wins_where():
    assert verdict_sentence(standings(FOUND)) == (
        "Beside the best other method of each stream driftmoe is ahead on clear (+10.0); level on close "
        "(-0.2); behind on lost (-10.0). Level: the 95 % interval of the difference holds 0. Numbers are "
        "points of accuracy."
    )
    assert verdict_sentence(standings(FOUND)[:1]) == (
        "In 90.0 % of the rows driftmoe is right, 10.0 points more than arf10, the best of the others (95 % "
        "interval of the difference +10.0 to +10.0)."
    )
    assert "fewer than arf10" in (level := verdict_sentence(standings(FOUND)[1:2]))
    assert level.endswith("which holds 0: level).")


def test_without_counts_the_means_decide():
    old = results(one={"driftmoe": [60] * 4, "arf10": [70] * 4})
    for cells in old["one"].values():
        del cells[0]["right"]
    (one,) = standings(old)
    assert (one.ends, one.side) == (None, "behind")
    assert "interval" not in verdict_sentence([one])
    assert accuracy_interval(old["one"]["driftmoe"]) is None


def test_seeds_of_only_one_method_count_where_all_see_the_same_rows():
    found = {
        stream: {
            "driftmoe": [cell(stream, "driftmoe", 1, [90] * 4), cell(stream, "driftmoe", 2, [70] * 4)],
            "arf10": [cell(stream, "arf10", 1, [60] * 4)],
        }
        for stream in ("phishing", "SEA_a")
    }
    real, generated = standings(found)
    assert (real.own, real.lead) == (pytest.approx(80), pytest.approx(20))
    assert real.ends == (pytest.approx(10), pytest.approx(30))
    assert (generated.own, generated.ends) == (pytest.approx(90), (pytest.approx(30), pytest.approx(30)))


def test_methods_of_our_kind_are_no_rivals():
    found = {"s": {}}
    for name, right in (("task", 99), ("driftmoe", 80), ("arf10", 70)):
        kind = "arf10" if name == "arf10" else "driftmoe"
        found["s"][name] = [cell("s", name, 1, [right] * 4, kind=kind)]
    assert our_methods(found) == ["driftmoe", "task"]
    assert [(one.ours, one.rival) for one in standings(found)] == [("driftmoe", "arf10")]
    del found["s"]["driftmoe"], found["s"]["task"]
    assert standings(found) == []
    assert "verdict" not in drift_report("t", found, {}, 1).partition("<h1>")[2]


def test_an_interval_of_the_accuracy_itself():
    low, high = accuracy_interval([cell("s", "m", 1, [80, 90, 70, 80])])
    assert 70 <= low < 80 < high <= 90
    short = cell("s", "m", 1, [80, 40], rows=150)
    assert accuracy_interval([short]) == (pytest.approx(80, abs=1), pytest.approx(80, abs=1))


@pytest.mark.parametrize("streams", [["clear"], ["clear", "close", "lost"]])
def test_our_method_comes_first_and_the_better_is_bold(streams):
    report = drift_report("T", {name: FOUND[name] for name in streams}, {"commit": "abc"}, 8)
    table = report[report.index("<h2>driftmoe and the best") :]
    table = table[: table.index("</table>")]
    row = next(line for line in table.splitlines() if ">clear<" in line)
    assert "<td>clear</td><td class=best>90.0" in row and "<td>arf10 80.0" in row and "+10.0" in row
    everything = report[report.index("<h2>All methods") :]
    assert everything.index("driftmoe") < everything.index("arf10") < everything.index("majority")
    assert report.count("<polyline") == sum(len(FOUND[name]) for name in streams)
    assert report.index("verdict") < report.index("<table")


def test_drifts_and_the_bound_are_marked():
    found = {"s": {"driftmoe": [cell("s", "driftmoe", 1, [80] * 4, drifts=[150, 250], bayes=0.95)]}}
    report = drift_report("T", found, {}, 1)
    assert report.count('class="mark"') == 3
    assert "dashed upright lines are drifts" in report


def test_voices_have_their_names():
    load = {"rows": [200, 400], "share": [[0.5, 0.1, 0.2, 0.2], [0.1, 0.1, 0.1, 0.7]]}
    found = {"s": {"driftmoe": [cell("s", "driftmoe", 1, [80] * 4, expert_load=load)]}}
    report = drift_report("T", found, {}, 1)
    assert report.count("<rect") == 8
    assert all(f">{name}</text>" in report for name in ("trees", "mlp", "linear", "neighbours"))
    found["s"]["driftmoe"][0]["settings"]["method"]["mode"] = "data"
    assert ">expert 3</text>" in drift_report("T", found, {}, 1)


def test_curves_with_gaps_are_drawn():
    one = cell("s", "driftmoe", 1, [80] * 4)
    one["curves"]["accuracy"][0] = None
    report = drift_report("T", {"s": {"driftmoe": [one]}}, {}, 1)
    line = re.search(r'<polyline points="([^"]*)"', report)
    assert len(line[1].split()) == 3
