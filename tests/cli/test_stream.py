import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from moe_adapt.cli import main

#: A learner and an encoder of the user's own; the learner can stop in its third task and say so.
CUSTOM = """
import threading
from moe_adapt.checks.toys import ToyEncoder, gaussian_stream
from moe_adapt.learners import DarkReplay
from moe_adapt.streams import TaskStream


class MyEncoder(ToyEncoder):
    pass


class MyStream(TaskStream):
    def __init__(self, tasks: int = 4):
        self.__dict__.update(vars(gaussian_stream(tasks=tasks)))


class Stopping(DarkReplay):
    def __init__(self, backbone: ToyEncoder, stops: bool = False, epochs: int = 2, lr: float = 0.05):
        super().__init__(backbone, epochs=epochs, lr=lr, capacity=10)
        self.stops = stops

    def settings(self):
        return super().settings() | {"stops": None}

    def losses(self, batch):
        if self.stops and len(self.history) == 3:
            print("\\nin the third task", flush=True)
            threading.Event().wait()
        return super().losses(batch)
"""


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> list[str]:
    module = tmp_path_factory.mktemp("custom") / "toy_stream_modules.py"
    module.write_text(CUSTOM)
    classes = ["--backbone", "MyEncoder", "--stream", "MyStream", "--learner", "Stopping"]
    return ["stream", "--custom_modules", str(module), *classes]


def matrix(folder: Path) -> list[list[int]]:
    return json.loads((folder / "result.json").read_text())["accuracy_matrix"]["correct"]


def test_a_run_and_its_saved_configuration(words, tmp_path, capsys):
    assert main([*words, "--out", str(tmp_path / "a")]) == 0
    out = capsys.readouterr().out
    assert "task 4/4" in out
    assert "final_accuracy" in out
    config = tmp_path / "a" / "moe_adapt_config.yaml"
    assert yaml.safe_load(config.read_text())["learner"]["init_args"]["epochs"] == 2
    assert main(["stream", "--config", str(config), "--out", str(tmp_path / "b")]) == 0
    assert matrix(tmp_path / "a") == matrix(tmp_path / "b")
    assert (tmp_path / "a" / "report.html").read_text().startswith("<!doctype html>")


def test_killed_in_a_task_and_resumed_equals_an_uninterrupted_run(words, tmp_path):
    assert main([*words, "--out", str(tmp_path / "whole")]) == 0
    script = "import sys; from moe_adapt.cli import main; sys.exit(main(sys.argv[1:]))"
    cut = tmp_path / "cut"
    command = [sys.executable, "-c", script, *words, "--out", str(cut)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    environment = os.environ | {"PYTHONPATH": "."}
    run = subprocess.Popen([*command, "--learner.stops", "true"], env=environment, **options)
    try:
        said = next((line for line in run.stdout if "in the third task" in line), None)
        assert said is not None, "the run ended before its third task"
    finally:
        run.send_signal(signal.SIGKILL)
        run.wait()
    assert _tasks_done(cut) == 2
    assert main([*words, "--out", str(cut), "--resume"]) == 0
    assert matrix(cut) == matrix(tmp_path / "whole")
    for path in (tmp_path / "whole" / "predictions").iterdir():
        assert (np.load(path) == np.load(cut / "predictions" / path.name)).all()


def _tasks_done(folder: Path) -> int:
    return len(list((folder / "predictions").glob("*.npy"))) if (folder / "last.ckpt").is_file() else 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--learner.epochs", "3"], "learner.epochs was 2, is 3"),
        (["--stream.tasks", "3"], "stream."),
        (["--seed_everything", "1"], "seed was 0, is 1"),
        (["--overwrite"], "not both"),
    ],
)
def test_resuming_with_another_configuration(words, tmp_path, capsys, change, message):
    out = ["--out", str(tmp_path / "run")]
    assert main([*words, *out]) == 0
    before = (tmp_path / "run" / "result.json").read_bytes()
    assert main([*words, *out, "--resume", *change]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert (tmp_path / "run" / "result.json").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--learner.epoch", "3"], "Did you mean"),
        (["--learner.epochs", "0"], "epochs must be at least 1"),
        (["--runner.eval_at", "never"], "eval_at"),
        (["--runner.eval_batch", "4"], "eval_batch"),
        (["--learner", "Stoping"], "Did you mean 'Stopping'"),
        (["--resume"], "nothing to resume"),
        (["--config", "stream/txt"], "Did you mean 'stream/text'"),
    ],
)
def test_mistakes_are_one_line(words, tmp_path, capsys, options, message):
    assert main([*words, "--out", str(tmp_path / "run"), *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "run" / "result.json").exists()


def test_another_run_is_not_overwritten(words, tmp_path, capsys):
    out = ["--out", str(tmp_path / "run")]
    assert main([*words, *out]) == 0
    assert main([*words, *out]) == 2
    assert "already holds a stream run" in capsys.readouterr().err
    assert main([*words, *out, "--overwrite", "--bounds+", str(tmp_path / "nowhere")]) == 2
