"""Runs and their folders: resuming, interrupting, evaluating, rebuilding."""

import csv
import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

from moe_adapt.cli.predictions import rows
from moe_adapt.errors import UserError
from moe_adapt.runs.folder import resume_hint, run_folder
from moe_adapt.runs.rebuild import load_module
from tests.training.tiny import tiny_bert

CONFIG = "moe_adapt_config.yaml"
WORDS = {"warm": ["red", "orange", "yellow"], "cold": ["blue", "violet", "green"]}


@pytest.fixture
def keep_sigint() -> Iterator[None]:
    """Lightning ignores further interrupts once it has seen one."""
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.fixture
def words(tmp_path: Path) -> list[object]:
    """The options of a small text classification with a tiny BERT."""
    for split, count in (("train", 12), ("test", 4)):
        pairs = [(colour, label) for label, colours in WORDS.items() for colour in colours] * (count // 3)
        lines = [json.dumps({"text": colour, "label": label}) for colour, label in pairs]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    options = {
        "model.backbone": tiny_bert(tmp_path / "bert"),
        "data.train": "train.jsonl",
        "data.test": "test.jsonl",
        "data.batch_size": 8,
        "trainer.accelerator": "cpu",
        "trainer.max_epochs": 1,
        "trainer.enable_progress_bar": "false",
    }
    configs = ["--config", "task/sequence_classification", "--config", "routed_lora/top_k"]
    return [*configs, *(word for name, value in options.items() for word in (f"--{name}", value))]


def test_text_classification_from_fit_to_reload(moe_adapt, words):
    assert moe_adapt("fit", *words, "--out", "run").code == 0
    config = yaml.safe_load(Path("run", CONFIG).read_text())
    assert config["model"]["init_args"]["num_classes"] == 2
    files = {path.name for path in Path("run").iterdir()}
    assert files >= {CONFIG, "manifest.json", "metrics.csv", "routing.json", "checkpoints"}

    module = load_module("run", "last")
    assert not module.training
    saved = torch.load("run/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    state = module.state_dict()
    assert saved
    assert all(torch.equal(state[name], tensor) for name, tensor in saved.items())

    tested = moe_adapt("test", "--config", f"run/{CONFIG}")
    assert tested.code == 0
    assert Path("run/test/metrics.csv").is_file()
    assert "val/acc" in Path("run/metrics.csv").read_text()

    assert moe_adapt("predict", "--config", f"run/{CONFIG}").code == 0
    lines = [json.loads(line) for line in Path("run/predictions.jsonl").read_text().splitlines()]
    assert len(lines) == 6
    assert {line["class"] for line in lines} <= set(WORDS)


def test_flags_reach_the_tuner(moe_adapt, words):
    assert (
        moe_adapt("fit", *words, "--model.tuner.num_experts", 3, "--model.tuner.r", 2, "--out", "run").code
        == 0
    )
    state = load_module("run", "last").state_dict()
    shapes = {tuple(tensor.shape) for name, tensor in state.items() if ".moe_adapt_A." in name}
    assert shapes == {(3, 2, 32)}


def test_tuner_mistakes_are_one_line(moe_adapt, words):
    for option, value, expected in [
        ("method", "dynmol", "Did you mean 'dynmole'"),
        ("metod", "dynmole", "Did you mean 'method'"),
        ("selector.name", "topk", "Did you mean 'top_k'"),
        ("num_experts", 0, "at least 1"),
    ]:
        result = moe_adapt("fit", *words, f"--model.tuner.{option}", value)
        assert result.code == 2
        (line,) = [line for line in result.err.splitlines() if line.startswith("error: ")]
        assert expected in line
        assert len(line) < 500


def test_missing_rows_are_told_before_training(moe_adapt, words):
    result = moe_adapt("fit", *words, "--data.train", "tran.jsonl", "--out", "run")
    assert result.code == 2
    assert "error: there is no file tran.jsonl" in result.err
    assert not Path("run/checkpoints").exists()


def test_another_run_is_not_overwritten_unless_asked(toy):
    assert toy("fit", "--out", "run", "--model.lr", 0.5).code == 0
    before = Path("run", CONFIG).read_text()
    refused = toy("fit", "--out", "run", "--model.lr", 0.25)
    assert refused.code == 2
    assert "already holds a run" in refused.err
    assert Path("run", CONFIG).read_text() == before
    assert toy("fit", "--out", "run", "--model.lr", 0.25, "--overwrite").code == 0
    assert "lr: 0.25" in Path("run", CONFIG).read_text()
    both = toy("fit", "--out", "run", "--overwrite", "--resume")
    assert both.code == 2
    assert "not both" in both.err


def test_interrupt_tells_how_to_resume_and_that_works(toy, moe_adapt, keep_sigint):
    stopped = toy("fit", "--out", "run", "--trainer.max_epochs", 2, "--model.fail", "interrupt")
    assert stopped.code == 130
    line = stopped.err.splitlines()[-1]
    assert line == f"interrupted. resume with: moe-adapt fit --config run/{CONFIG} --out run --resume"
    assert torch.load("run/checkpoints/last.ckpt", weights_only=True)["global_step"] == 2
    resume = line.split("moe-adapt ")[1].split()
    finished = moe_adapt(*resume, "--model.fail", "no")
    assert finished.code == 0
    assert torch.load("run/checkpoints/last.ckpt", weights_only=True)["global_step"] == 4
    with Path("run/metrics.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file) if row["val/loss"]] == ["1", "3"]


def test_resume_hint_without_a_checkpoint(tmp_path):
    assert "start again" in resume_hint(tmp_path)


def test_error_while_training_is_one_line(toy):
    result = toy("fit", "--out", "run", "--model.fail", "step")
    assert result.code == 2
    assert "error: the toy's loss is not finite at step 1." in result.err


def test_checkpoint_hyper_parameters_stay_out_of_the_command_line(toy):
    assert toy("fit", "--out", "run", "--model.lr", 0.5, "--data.classes", 4).code == 0
    checkpoint = "run/checkpoints/last.ckpt"
    assert torch.load(checkpoint, weights_only=True)["hyper_parameters"]["lr"] == 0.5
    words = ["--model.lr", 0.25, "--ckpt_path", checkpoint, "--trainer.max_epochs", 2]
    assert toy("fit", "--out", "other", *words, "--data.classes", 4).code == 0
    assert "lr: 0.25" in Path("other", CONFIG).read_text()


def test_evaluation_takes_the_best_checkpoint_or_the_one_named(toy, moe_adapt):
    assert toy("fit", "--out", "run", "--model.lr", 10.0).code == 0
    saved = torch.load("run/checkpoints/best.ckpt", weights_only=True)["state_dict"]["head.weight"]

    def tested(*options: str) -> float:
        assert moe_adapt("test", "--config", f"run/{CONFIG}", *options).code == 0
        folder = Path("elsewhere" if "elsewhere" in options else "run")
        with (folder / "test" / "metrics.csv").open() as file:
            return float(list(csv.DictReader(file))[-1]["test/weight"])

    assert tested() == pytest.approx(float(saved.abs().sum()), rel=1e-5)
    assert tested("--ckpt_path", "last") == pytest.approx(float(saved.abs().sum()), rel=1e-5)
    assert tested("--out", "elsewhere") != pytest.approx(float(saved.abs().sum()), rel=1e-3)
    missing = moe_adapt("test", "--config", f"run/{CONFIG}", "--ckpt_path", "second")
    assert missing.code == 2
    assert "no checkpoint 'second'" in missing.err


def test_a_run_without_a_length_is_short(toy):
    assert toy("fit", "--out", "run", "--trainer.max_epochs", "null").code == 0
    assert torch.load("run/checkpoints/last.ckpt", weights_only=True)["epoch"] == 2


def test_load_module_refuses_what_is_no_run(tmp_path):
    with pytest.raises(UserError, match="not the folder of a run"):
        load_module(tmp_path)
    (tmp_path / CONFIG).write_text("data: {}")
    with pytest.raises(UserError, match="describes no model"):
        load_module(tmp_path)


def test_new_folders_of_one_launch_are_shared(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setenv("MOE_ADAPT_RUN_FOLDER", "runs/earlier")
    first = run_folder(None, None, "dynmole")
    assert first.name.startswith("dynmole-20")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert run_folder(None, None, "dynmole") == first
    assert run_folder("mine", "other", "dynmole") == Path("mine")
    assert run_folder(None, "other", "dynmole") == Path("other")


def test_prediction_rows():
    assert list(rows(["a", "b"])) == [{"text": "a"}, {"text": "b"}]
    classified = {
        "prediction": torch.tensor([1, 0]),
        "probabilities": torch.tensor([[0.25, 0.75], [1.0, 0.0]]),
    }
    assert list(rows(classified, ["no", "yes"])) == [
        {"prediction": 1, "probabilities": [0.25, 0.75], "class": "yes"},
        {"prediction": 0, "probabilities": [1.0, 0.0], "class": "no"},
    ]
    scores = torch.tensor([0.5, 1.5, 2.5])
    choices = {"scores": scores, "choice_row": torch.tensor([0, 0, 1]), "prediction": torch.tensor([1, 0])}
    assert list(rows(choices)) == [
        {"prediction": 1, "scores": [0.5, 1.5]},
        {"prediction": 0, "scores": [2.5]},
    ]
