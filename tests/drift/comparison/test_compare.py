"""Recipes: what they may say, resuming, the report; the command."""

import json

import pytest
import yaml

from moe_adapt.cli import main
from moe_adapt.drift.comparison import cells
from moe_adapt.drift.comparison.recipe import read_recipe
from moe_adapt.drift.comparison.summary import ranking, summarise, wins_and_losses
from moe_adapt.errors import UserError
from moe_adapt.runs.config_names import packaged_configs

RECIPE = {
    "title": "Small",
    "window": 100,
    "seeds": [1, 2],
    "streams": [{"name": "SEA_a", "rows": 400}, {"name": "phishing", "rows": 200, "seeds": [1]}],
    "methods": ["no_change", "majority", {"name": "driftmoe", "n_experts": 2}],
}


@pytest.fixture
def recipe(tmp_path):
    def write(**changes):
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump({**RECIPE, **changes}))
        return path

    return write


@pytest.mark.parametrize("name", [name for name in packaged_configs() if name.startswith("drift/")])
def test_packaged_recipes_are_whole(name):
    read = read_recipe(packaged_configs()[name])
    assert "driftmoe" in {method.name for method in read.methods}
    assert len(list(read.cells())) >= len(read.streams) * len(read.methods)


def test_runs_resumes_and_reports(recipe, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    command = ["drift", "--config", str(recipe()), "--out", str(out)]
    assert main([*command, "--streams", "SEA_a", "--seeds", "1"]) == 0
    assert "0 of 3 runs are there" in capsys.readouterr().out
    first = {path: path.read_bytes() for path in out.glob("cells/*/*/*.json")}
    assert len(first) == 3
    assert main(command) == 0
    assert "3 of 9 runs are there" in capsys.readouterr().out
    assert all(path.read_bytes() == content for path, content in first.items())
    report = (out / "report.html").read_text()
    assert report.count("<polyline") == 6, "a curve per method and stream"
    assert "Beside the best other method of each stream driftmoe is" in report
    assert '<svg viewBox="0 0 ' in report and "data:image" not in report
    assert "9 of 9 runs" in report
    assert json.loads((out / "manifest.json").read_text())["versions"]["river"]
    monkeypatch.setattr(cells, "test_then_train", None)
    assert main([*command, "--report-only"]) == 0
    cell = json.loads((out / "cells/SEA_a/driftmoe/seed_1.json").read_text())
    assert [drift["drift"] for drift in cell["recovery"]] == [100, 200, 300]
    assert len(cell["expert_load"]["share"][0]) == 4, "a share per voice"
    right = [int(count) for count in cell["right"].split()]
    assert len(right) == 4
    assert sum(right) / 400 == pytest.approx(cell["accuracy"])
    assert cell["made_with"]["versions"]["river"] and cell["made_with"]["command"]


def test_same_seed_same_result(recipe, tmp_path):
    found = []
    for name in ("one", "two"):
        out = tmp_path / name
        assert (
            main(["drift", "-c", str(recipe()), "--out", str(out), "--streams", "SEA_a", "--seeds", "2"]) == 0
        )
        cell = json.loads((out / "cells/SEA_a/driftmoe/seed_2.json").read_text())
        found.append((cell["accuracy"], cell["curves"], cell["expert_load"]))
    assert found[0] == found[1]


def test_other_settings_need_another_folder(recipe, tmp_path, capsys):
    command = ["--out", str(tmp_path / "out"), "--streams", "phishing", "--methods", "majority"]
    assert main(["drift", "-c", str(recipe()), *command]) == 0
    assert main(["drift", "-c", str(recipe(delay=10)), *command]) == 2
    assert "other settings" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"methods": ["arf"]}, "arf10"),
        ({"methods": [{"kind": "driftmoe"}]}, "no name"),
        ({"methods": ["majority", "majority"]}, "same name"),
        ({"streams": []}, "no streams"),
        ({"streams": ["SEA_b"]}, "Did you mean 'SEA_"),
        ({"streams": [{"name": "SEA_a", "row": 4}]}, "rows"),
        ({"seeds": "three"}, "seeds"),
        ({"delay": -1}, "delay"),
        ({"windows": 3}, "window"),
    ],
)
def test_mistakes_in_a_recipe_are_told(recipe, changes, words):
    with pytest.raises(UserError, match=words):
        read_recipe(recipe(**changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"streams": ["weather"]}, "MOE_ADAPT_DATA"),
        ({"methods": [{"name": "driftmoe", "experts": 3}]}, "experts"),
        ({"methods": [{"name": "driftmoe", "preset": "best"}]}, "preset"),
        ({"methods": [{"name": "driftmoe", "top_k": 0}]}, "top_k"),
    ],
)
def test_mistakes_are_told_before_anything_runs(recipe, tmp_path, capsys, monkeypatch, changes, words):
    monkeypatch.delenv("MOE_ADAPT_DATA", raising=False)
    assert main(["drift", "-c", str(recipe(**changes)), "--out", str(tmp_path / "out")]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_unknown_selection(recipe, tmp_path, capsys):
    assert main(["drift", "-c", str(recipe()), "--out", str(tmp_path / "o"), "--methods", "driftmo"]) == 2
    assert "Did you mean 'driftmoe'" in capsys.readouterr().err


def result(stream, method, seed, accuracy):
    return {"stream": stream, "method": method, "seed": seed, "accuracy": accuracy}


def test_comparisons_use_shared_seeds_only():
    results = {
        "s": {
            "driftmoe": [result("s", "driftmoe", 1, 0.8), result("s", "driftmoe", 2, 0.2)],
            "other": [result("s", "other", 1, 0.9)],
        }
    }
    assert wins_and_losses(results, "driftmoe")["s"]["other"] == pytest.approx(10)
    assert ranking(results, ["driftmoe", "other"]).ranks == {"other": 1.0, "driftmoe": 2.0}
    mean, spread, seeds = summarise(results, "accuracy")["s"]["driftmoe"]
    assert (mean, seeds) == (pytest.approx(50.0), 2)
    assert spread == pytest.approx(42.43, abs=0.01)


def test_the_demo_recipe_needs_no_file(monkeypatch):
    monkeypatch.delenv("MOE_ADAPT_DATA", raising=False)
    recipe = read_recipe(packaged_configs()["drift/demo"])
    for stream in recipe.streams:
        assert len(list(stream.build(1))) > 1000


def test_load_of_experts_that_come_with_classes(recipe, tmp_path):
    path = recipe(
        streams=[{"name": "image_segments", "rows": 40, "seeds": [1]}],
        methods=[{"name": "task", "kind": "driftmoe", "mode": "task"}],
    )
    assert main(["drift", "-c", str(path), "--out", str(tmp_path / "out")]) == 0
    cell = json.loads((tmp_path / "out/cells/image_segments/task/seed_1.json").read_text())
    shares = cell["expert_load"]["share"]
    assert 1 < len(shares[0]) < len(shares[-1])
    assert all(sum(share) == pytest.approx(1.0, abs=1e-3) for share in shares)
