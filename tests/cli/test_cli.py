import warnings
from pathlib import Path

import pytest
import yaml

from moe_adapt.cli.main import plain_warnings

CONFIG = "moe_adapt_config.yaml"


def one_line(text: str) -> str:
    """The useful line: everything a mistake prints, apart from what Lightning logs."""
    lines = [line for line in text.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert "Traceback" not in text
    assert "usage" not in text
    return lines[0]


def test_fit_fills_the_run_folder(toy, tmp_path):
    result = toy("fit", "--out", "run")
    assert result.code == 0
    run = tmp_path / "run"
    assert (run / "checkpoints" / "last.ckpt").is_file()
    assert (run / "metrics.csv").is_file()
    config = yaml.safe_load((run / CONFIG).read_text())
    assert config["model"] == {
        "class_path": "toys.ToyClassifier",
        "init_args": {"backbone": "tiny", "num_classes": 3, "tuner": None, "lr": 0.1, "fail": ""},
    }
    assert config["data"]["init_args"]["tokenizer"] == "tiny"
    assert config["trainer"]["default_root_dir"] == "run"
    assert not {"out", "resume", "overwrite", "ckpt_path", "config"} & set(config)


def test_default_run_folder_is_named_after_the_last_config(toy, tmp_path):
    Path("first.yaml").write_text("model: {class_path: ToyClassifier}")
    Path("mine.yaml").write_text("trainer: {max_epochs: 1}")
    assert toy("fit", "--config", "first.yaml", "--config", "mine").code == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("mine-20")


def test_configs_merge_left_to_right_then_flags(toy):
    Path("a.yaml").write_text(
        "model: {class_path: ToyClassifier, init_args: {backbone: a, lr: 1.0, num_classes: 2}}"
    )
    Path("b.yaml").write_text("model: {init_args: {lr: 2.0, tuner: {method: b}}}")
    Path("c.yaml").write_text("model: {init_args: {tuner: {num_experts: 4}}}")
    words = ["--config", "a", "--config", "b", "--config", "c", "--model.tuner.num_experts", "5"]
    printed = yaml.safe_load(toy("fit", *words, "--print_config", model="ToyClassifier").out)
    assert printed["model"]["init_args"]["lr"] == 2.0
    assert printed["model"]["init_args"]["tuner"] == {"method": "b", "num_experts": 5}
    assert printed["model"]["init_args"]["num_classes"] == 2


@pytest.mark.parametrize("words", [[], ["--model.num_classes", "3", "--data.tokenizer", "other"]])
def test_printed_config_can_be_given_back(toy, moe_adapt, words):
    printed = toy("fit", *words, "--out", "run", "--print_config")
    assert printed.code == 0
    Path("whole.yaml").write_text(printed.out)
    again = moe_adapt("fit", "--config", "whole.yaml", "--print_config")
    assert again.out == printed.out
    assert moe_adapt("fit", "--config", "whole.yaml").code == 0
    saved = yaml.safe_load(Path("run", CONFIG).read_text())
    assert saved["data"]["init_args"]["tokenizer"] == ("other" if words else "tiny")


def test_saved_config_runs_again(toy, moe_adapt):
    assert toy("fit", "--out", "run").code == 0
    assert moe_adapt("fit", "--config", f"run/{CONFIG}", "--out", "again").code == 0
    first, second = (yaml.safe_load(Path(run, CONFIG).read_text()) for run in ("run", "again"))
    assert first["trainer"].pop("default_root_dir") == "run"
    assert second["trainer"].pop("default_root_dir") == "again"
    assert first == second


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--trainer.max_epoch=3"], ["--trainer.max_epoch", "'trainer.max_epochs'"]),
        (["--trainerr.max_epochs=3"], ["--trainerr.max_epochs", "'trainer'"]),
        (["--model.lrr=1"], ["'lrr'", "Did you mean 'lr'", "ToyClassifier"]),
        (["--model.tuner.metod=x"], ["model.tuner", "'metod'", "Did you mean 'method'"]),
        (["--model.lr=fast"], ["model.lr: expected float, got 'fast'"]),
        (["--model.tuner.num_experts=six"], ["model.tuner.num_experts: expected int or list", "'six'"]),
        (["--trainer.precision=half"], ["trainer.precision", "'bf16-mixed'", "got 'half'"]),
        (["--data.batchsize=1"], ["ToyData", "'batchsize'", "Did you mean 'batch_size'"]),
        (["--model", "ToyClasifier"], ["no class 'ToyClasifier'", "Did you mean 'ToyClassifier'"]),
        (["--model", "ToyData"], ["no class 'ToyData'", "Known: "]),
        (["--seed_everything=true"], ["seed_everything: expected int, got 'True'"]),
        (["--seed_everything=x"], ["seed_everything: expected int, got 'x'"]),
        (["stray"], ["unexpected argument 'stray'"]),
        (["--config", "routed_lora/nope"], ["'routed_lora/nope'", "moe-adapt list configs"]),
        (["--resume", "--out", "nowhere"], ["nothing to resume", "nowhere/checkpoints/last.ckpt"]),
        (["--model.fail=init"], ["the toy refuses to be built."]),
        (["--data.classes=0"], ["the toy data is empty."]),
        (["--model.num_classes=7"], ["num_classes is 7", "the data has 3 classes"]),
        (["--trainer.accelerator=abacus"], ["abacus"]),
        (["--custom_modules", "gone.py"], ["gone.py'", "Python file"]),
        (["--ckpt_path", "gone.ckpt"], ["gone.ckpt"]),
        (["--trainer.strategy=fsdp"], ["fsdp shards weights", "use one device or ddp"]),
    ],
)
def test_mistakes_are_one_line(toy, words, expected):
    result = toy("fit", *words)
    assert result.code == 2
    line = one_line(result.err)
    for part in expected:
        assert part in line
    assert len(line) < 700


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("trainer: {max_epoch: 3}", ["trainer.max_epoch", "Did you mean 'trainer.max_epochs'"]),
        ("modle: {class_path: ToyClassifier}", ["'modle", "Did you mean 'model'"]),
        ("model: {class_path: ToyClassifier, init_args: {lrr: 1}}", ["Did you mean 'lr'"]),
        ("model: {class_path: ToyClassifier, init_args: {tuner: {metod: x}}}", ["Did you mean 'method'"]),
        ("model: {init_args: {lr: 1}}", ["model.lr", "name the class in an earlier --config"]),
        ("model: [", ["mistake.yaml", "not YAML (line 2"]),
        ("just text", ["should hold options"]),
        ("custom_modules: [gone.py]", ["gone.py"]),
    ],
)
def test_mistakes_in_yaml_are_one_line(moe_adapt, content, expected):
    Path("mistake.yaml").write_text(content)
    result = moe_adapt(
        "fit", "--custom_modules", Path(__file__).with_name("toys.py"), "--config", "mistake.yaml"
    )
    assert result.code == 2
    for part in expected:
        assert part in one_line(result.err)


def test_what_a_command_warns_of_is_one_line_and_told_once():
    usual = warnings.formatwarning
    with plain_warnings():
        told = [warnings.formatwarning("mind the gap.", UserWarning, "a.py", 1) for _ in range(2)]
        other = warnings.formatwarning("old name", DeprecationWarning, "a.py", 1)
    assert told == ["warning: mind the gap.\n", ""] and "a.py:1: DeprecationWarning: old name" in other
    assert warnings.formatwarning is usual
