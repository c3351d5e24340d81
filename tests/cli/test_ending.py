"""How fit and test end: results beside baselines, a report, the next commands; plain LoRA on request."""

import json
from pathlib import Path

import pytest

from moe_adapt.evaluation.words import routing_sentences
from moe_adapt.runs.outcome import Outcome
from moe_adapt.runs.report import judge
from tests.cli.test_runs import CONFIG, words  # noqa: F401  a fixture


def test_fit_ends_with_a_table_a_report_and_commands(moe_adapt, words):  # noqa: F811
    fitted = moe_adapt("fit", *words, "--out", "run", "--baseline", "equal")
    assert fitted.code == 0, fitted.err
    for expected in (
        "linear probe",
        "nearest class mean",
        "LoRA, as many parameters",
        "moe-adapt export run",
    ):
        assert expected in fitted.out
    manifest = json.loads(Path("run/manifest.json").read_text())
    result = manifest["result"]
    assert result["metric"] == "val/acc"
    assert result["value"] >= result["baselines"]["linear probe"] - 1e-6
    assert set(result["baselines"]) == {
        "always the largest class",
        "linear probe",
        "nearest class mean",
        "LoRA, as many parameters",
    }
    other = json.loads(Path("run/baselines/equal/manifest.json").read_text())
    own = [m["trainable_parameters"] for m in (manifest, other)]
    assert abs(own[0] - own[1]) / own[0] < 0.1
    report = Path("run/report.html").read_text()
    assert "Which class is taken for which" in report and "Routing" in report

    tested = moe_adapt("test", "--config", f"run/{CONFIG}")
    assert tested.code == 0 and "DataLoader 0" not in tested.out
    assert "linear probe" in tested.out

    repeated = moe_adapt("fit", *words, "--out", "run", "--overwrite", "--head_start.kind", "random")
    assert repeated.code == 0
    assert json.loads(Path("run/manifest.json").read_text())["head_start"]["kind"] == "random"
    assert not Path("run/baselines").exists()


def test_a_baseline_needs_an_adapter(moe_adapt, words):  # noqa: F811
    refused = moe_adapt("fit", *words, "--model.tuner", "null", "--out", "run", "--baseline", "lora")
    assert refused.code == 2
    assert "this run has none" in refused.err


@pytest.mark.parametrize(
    ("value", "rival", "word"), [(0.9, 0.5, "ahead of"), (0.5, 0.49, "level with"), (0.4, 0.8, "behind")]
)
def test_verdicts_count_rows(value, rival, word):
    outcome = Outcome("val/acc", value, True, Path("best.ckpt"), {"linear probe": rival}, rows=50)
    assert f"{word} the best baseline (linear probe" in judge(outcome, "this run")


def test_a_weak_result_says_so():
    outcome = Outcome("val/acc", 1.0, True, Path("best.ckpt"), rows=1)
    outcome.class_names, outcome.confusion = ["no", "yes"], [[1, 0], [0, 0]]
    said = judge(outcome, "this run")
    assert "macro F1 1.0000 (1 row)" in said
    assert "So few rows tell little (standard error 0.22); no held-out row is of yes: hold out more" in said
    outcome = Outcome("val/acc", 0.9, True, Path("best.ckpt"), rows=200)
    outcome.confusion = [[180, 0], [20, 0]]
    assert outcome.macro_f1 == pytest.approx(180 / 380)
    assert judge(outcome, "this run").endswith("macro F1 0.4737 (200 rows).")


def test_routing_in_words():
    said = routing_sentences({"group_js": 0.001, "entropy": 0.99, "mean_k": 2.0, "dead_experts": 0.0})
    assert said[0].startswith("experts are not told apart by class")
    assert "nearly uniform" in said[1]
    assert routing_sentences({}) == []
