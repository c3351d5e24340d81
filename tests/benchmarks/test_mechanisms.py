"""The experiments on single mechanisms: what they declare, and how their results become a page."""

import importlib
import json
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MANIFEST = {"command": "x.py", "cpu_threads": 1}


@pytest.fixture
def program(monkeypatch):
    for folder in ("recipes", "routed_lora", "mechanisms"):
        monkeypatch.syspath_prepend(str(BENCHMARKS / folder))
    return importlib.import_module("run")


def cell(runs, name, seed, **found):
    text = json.dumps({"found": found, "settings": {"size": 1}, "manifest": MANIFEST})
    (runs / f"{name}-{seed}.json").write_text(text)


@pytest.fixture
def small(program):
    from frame import Experiment

    return Experiment("Title", "Text.", lambda *_: {}, {"accuracy": "right"}, {"size": 1}, baseline="plain")


def test_every_experiment_says_what_it_measures(program):
    found = program.experiments()
    assert {"cache", "edit_down", "unlearning"} <= found.keys()
    for name, experiment in found.items():
        assert experiment.text.endswith(".") and experiment.title, name
        assert experiment.baseline is None or experiment.judged in experiment.heads, name


def test_cells_become_rows_that_share_a_manifest(program, small, tmp_path):
    for seed, gain in enumerate((0.2, 0.3)):
        cell(tmp_path, "small", seed, plain={"accuracy": 0.5}, other={"accuracy": 0.5 + gain})
    to = tmp_path / "report.json"
    program.collect_results({"small": small}, tmp_path, to)
    program.collect_results({"small": small}, tmp_path, to)
    report = json.loads(to.read_text())
    assert report["manifests"] == [MANIFEST] and len(report["experiments"]["small"]["rows"]) == 4
    from tables import experiment_table

    lines = experiment_table("small", small, report).splitlines()
    assert "| plain | 0.500 ± 0.000 |  |" in lines
    assert any(line.startswith("| other | 0.750 ± 0.071 | +0.250 ± 0.635") for line in lines)
    assert lines[-1] == "2 seeds; `x.py`, 1 thread(s)."


def test_a_cell_of_other_settings_is_refused(program, small, tmp_path):
    (tmp_path / "small-0.json").write_text(json.dumps({"settings": {"size": 2}, "manifest": {}, "found": {}}))
    with pytest.raises(SystemExit, match="run it again"):
        program.collect_results({"small": small}, tmp_path, tmp_path / "report.json")


def test_the_page_is_what_the_results_say(program, tmp_path):
    from tables import render

    results = BENCHMARKS / "results"
    (tmp_path / "mechanisms.json").write_text((results / "mechanisms.json").read_text())
    render(program.experiments(), tmp_path)
    assert (tmp_path / "mechanisms.md").read_text() == (results / "mechanisms.md").read_text()


def test_requests_of_the_cache_experiment_lie_between_the_rules(program):
    import argparse

    found = program.experiments()["cache"].measure(0, argparse.Namespace(requests=200, exponent=1.0))
    shares = [found[rule]["size_6"] for rule in ("all known (Belady)", "queue of 8 known", "LRU")]
    assert shares == sorted(shares) and shares[0] > 0 and shares[-1] < 1
