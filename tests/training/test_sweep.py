"""Sweeps: what they run, what they leave out, and a local sweep on Ray with a trial that fails."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from moe_adapt.cli import main
from moe_adapt.errors import UserError
from moe_adapt.training.sweep import Sweep
from moe_adapt.training.sweep import run as running
from moe_adapt.training.sweep.report import write_results
from moe_adapt.training.sweep.run import Outcome, run_trials
from tests.training.tiny import tiny_bert

PLAN = {
    "command": "fit",
    "arguments": ["--model.lr", 0.01, "--flag", True],
    "methods": {"lora": ["--config", "routed_lora/lora"], "soft": None},
    "tasks": {"intents": ["--data.train", "a.jsonl"], "topics": []},
    "seeds": [0, 1],
    "metric": "val/acc",
}


def plan(folder, **changes):
    path = Path(folder) / "sweep.yaml"
    path.write_text(yaml.safe_dump(PLAN | changes))
    return path


def finish(trial, value):
    trial.folder.mkdir(parents=True)
    record = {"status": "finished", "metrics": {"val/acc": value, "val/loss": None}}
    (trial.folder / "manifest.json").write_text(json.dumps(record))


def test_a_trial_per_method_task_and_seed(tmp_path):
    found = Sweep.read(plan(tmp_path), tmp_path / "out")
    assert len(found.trials) == 8
    first = found.trials[0]
    assert first.folder == tmp_path / "out/intents/lora/0"
    expected = ["fit", "--model.lr", "0.01", "--flag", "true", "--data.train", "a.jsonl"]
    assert first.words()[:7] == expected
    assert first.words()[7:9] == ["--config", "routed_lora/lora"]
    assert first.words()[-2:] == ["--seed_everything=0", "--overwrite"]
    (first.folder / "checkpoints").mkdir(parents=True)
    (first.folder / "checkpoints" / "last.ckpt").touch()
    assert first.words()[-1] == "--resume"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"command": "predict"}, "runs fit or stream"),
        ({"methods": {}}, "methods maps names"),
        ({"methods": {"../up": []}}, "becomes a folder"),
        ({"methods": {"a": "--flag"}}, "list of arguments"),
        ({"seeds": ["x"]}, "whole numbers"),
        ({"metrics": "val/acc"}, "Did you mean 'metric'"),
    ],
)
def test_mistakes_in_the_file(tmp_path, changes, words):
    with pytest.raises(UserError, match=words):
        Sweep.read(plan(tmp_path, **changes), tmp_path)
    with pytest.raises(UserError, match="no sweep"):
        Sweep.read(tmp_path / "missing.yaml", tmp_path)


def test_results_of_what_has_finished(tmp_path):
    pytest.importorskip("matplotlib")
    found = Sweep.read(plan(tmp_path), tmp_path / "out")
    for number, trial in enumerate(found.trials[:3]):
        finish(trial, 0.5 + 0.1 * number)
    outcomes = run_trials(found.trials[:3])  # nothing is left to run, so Ray is not even imported
    assert {outcome.status for outcome in outcomes} == {"done before"}
    outcomes.append(Outcome(found.trials[3], "failed", 1.0, "error: no such file"))
    table = write_results(found, outcomes, tmp_path)
    assert "| intents | lora | 0.550 ± 0.071 (2) |" in table
    assert "| intents | soft | 0.700 |" in table
    assert "| topics | soft | - |" in table
    assert "* intents/soft/1: error: no such file" in table
    assert len(json.loads((tmp_path / "results.json").read_text())["trials"]) == 4
    assert (tmp_path / "results.png").stat().st_size > 1000


def test_a_trial_is_a_process_with_a_log(tmp_path):
    code, seconds, last = running.run_trial(["fit", "--no_such"], str(tmp_path / "t"), str(tmp_path), 1)
    assert code == 2
    assert seconds > 0
    assert last == (tmp_path / "t" / "log.txt").read_text().strip().splitlines()[-1]
    assert last.startswith("error: ")


WAITS = """
import signal
file = open({pipe!r}, "w")
print("began", file=file, flush=True)
signal.pause()
"""
WORKER = "from moe_adapt.training.sweep.run import run_trial; run_trial({words}, {out}, {out}, 1)"
SWEEP = "from moe_adapt.cli import main; main(['sweep', {file}, '--out', {out}, '--parallel', '1'])"


@pytest.mark.slow
@pytest.mark.parametrize("program", [WORKER, pytest.param(SWEEP, id="ray")])
def test_nothing_goes_on_after_a_kill(tmp_path, program):
    if program is SWEEP:
        pytest.importorskip("ray")
    psutil = pytest.importorskip("psutil")
    pipe, module = tmp_path / "pipe", tmp_path / "waiting.py"
    os.mkfifo(pipe)
    module.write_text(WAITS.format(pipe=str(pipe)))
    words = ["--custom_modules", str(module)]
    file = plan(tmp_path, arguments=words, methods={"one": None}, tasks=None, seeds=[0], metric=None)
    source = program.format(words=["fit", *words], out=repr(str(tmp_path / "out")), file=repr(str(file)))
    source = f"try:\n    {source}\nfinally:\n    open({str(pipe)!r}, 'w').write('ended')"
    process = subprocess.Popen([sys.executable, "-c", source])
    with pipe.open() as heard:
        assert heard.readline() == "began\n"
        others = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        assert heard.read() == ""  # until the trial has ended, which closes the pipe
    for other in others:
        other.wait()


@pytest.mark.slow
def test_a_local_sweep_of_eight_trials(tmp_path, monkeypatch, capsys):
    pytest.importorskip("ray")
    monkeypatch.chdir(tmp_path)
    tiny_bert(tmp_path / "bert")
    rows = [{"text": f"{word} {i}", "label": word} for i in range(8) for word in ("red", "blue")]
    for task in ("one", "two"):
        (tmp_path / f"{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["--model=SequenceClassifier", "--model.backbone=bert", "--model.pooling=mean"]
    arguments += ["--data=TextClassificationData", "--data.validation_fraction=0.25"]
    arguments += ["--trainer.max_epochs=1", "--trainer.accelerator=cpu"]
    settings = {
        "arguments": arguments,
        "methods": {
            "soft": ["--model.tuner.method=soft", "--model.tuner.r=2"],
            "broken": ["--model.tuner.method=nonsense"],
        },
        "tasks": {"one": ["--data.train=one.jsonl"], "two": ["--data.train=two.jsonl"]},
    }
    file = plan(tmp_path, **settings)
    assert main(["sweep", str(file), "--out", "out", "--parallel", "2"]) == 2
    captured = capsys.readouterr()
    assert "4 of 8 trials failed" in captured.err
    assert captured.out.count("finished") == 4
    assert "unknown method 'nonsense'" in (tmp_path / "out/one/broken/0/log.txt").read_text()
    before = (tmp_path / "out/two/soft/1/manifest.json").read_text()
    settings["methods"]["broken"] = ["--model.tuner.method=lora", "--model.tuner.r=2"]
    plan(tmp_path, **settings)
    shutil.rmtree(tmp_path / "out/one/soft/0")
    assert main(["sweep", str(file), "--out", "out", "--parallel", "2"]) == 0
    assert capsys.readouterr().out.count("done before") == 3
    assert (tmp_path / "out/two/soft/1/manifest.json").read_text() == before
    assert "| two | broken |" in (tmp_path / "out/results.md").read_text()
