import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import lightning  # noqa: F401  before the tests, so that its loggers exist
import pytest

from moe_adapt.cli import main

TOYS = Path(__file__).with_name("toys.py")
TRAINER = {
    "accelerator": "cpu",
    "max_epochs": 1,
    "enable_progress_bar": "false",
    "enable_model_summary": "false",
    "log_every_n_steps": 1,
}


@dataclass
class Result:
    code: int
    out: str
    err: str


@pytest.fixture
def moe_adapt(
    capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    """Run the command line in an empty folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):  # they keep the first test's stream
        monkeypatch.setattr(logging.getLogger(name), "handlers", [])

    def run(*words: object) -> Result:
        capsys.readouterr()
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run


@pytest.fixture
def toy(moe_adapt: Callable[..., Result]) -> Callable[..., Result]:
    """Run a command with the toy classes from toys.py, on the CPU."""

    def run(command: str, *words: object, model: str = "ToyClassifier", data: str = "ToyData") -> Result:
        trainer = [f"--trainer.{name}={value}" for name, value in TRAINER.items()]
        classes = ["--model", model, "--model.backbone", "tiny", "--data", data]
        return moe_adapt(command, "--custom_modules", TOYS, *trainer, *classes, *words)

    return run
