"""The short help, which must not promise options that are not there, and the shells' completion."""

import re
import shutil
import subprocess

import pytest

from moe_adapt.cli.completion import _actions, script
from moe_adapt.cli.main import COMMANDS
from moe_adapt.cli.options import constructor_options
from moe_adapt.cli.short_help import short_help
from moe_adapt.training.callbacks import HeadStart
from moe_adapt.training.datamodules import TextClassificationData
from moe_adapt.training.modules import SequenceClassifier

ELSEWHERE = {"help-all", "debug", "trust", "key", "custom_modules", "model.help", "data.help"}


@pytest.mark.parametrize("command", ["fit", "validate", "test"])
def test_every_option_of_the_short_help_is_one(command):
    text = short_help(command)
    assert text is not None and len(text.splitlines()) < 60
    told = set(re.findall(r"--([a-z_-]+(?:\.[a-z_]+)?)", text))
    known = {name.lstrip("-") for action in _actions(command, []) for name in action.option_strings}
    for prefix, cls in (("data", TextClassificationData), ("model", SequenceClassifier)):
        known |= {f"{prefix}.{option.name}" for option in constructor_options(cls)}
    known |= {f"head_start.{option.name}" for option in constructor_options(HeadStart)}
    assert told - known - ELSEWHERE == set()


def test_the_short_help_is_short_and_the_long_one_is_whole(moe_adapt):
    short, whole = moe_adapt("fit", "--help"), moe_adapt("fit", "--help-all")
    assert short.code == whole.code == 0
    assert "--help-all" in short.out and "--trainer.accumulate_grad_batches" not in short.out
    assert "--trainer.accumulate_grad_batches" in whole.out


@pytest.fixture(scope="module")
def bash(tmp_path_factory):
    pytest.importorskip("shtab", reason="needs shtab (extra 'completion')")
    if shutil.which("bash") is None:
        pytest.skip("needs bash")
    path = tmp_path_factory.mktemp("completion") / "script"
    path.write_text(script("bash"))

    def complete(*words: str) -> list[str]:
        lines = [f"source {path}", 'COMP_WORDS=("$@")', f"COMP_CWORD={len(words) - 1}"]
        lines += ["_shtab_moe_adapt", 'printf "%s\\n" "${COMPREPLY[@]}"']
        done = subprocess.run(["bash", "-c", "\n".join(lines), "-", *words], capture_output=True, text=True)
        return done.stdout.split()

    return complete


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["pre"], {"predict"}),
        (["fit", "--config", "task/"], {"task/causal_lm", "task/sequence_classification"}),
        (["fit", "--data.label"], {"--data.label_column"}),
        (["fit", "--model.back"], {"--model.backbone"}),
        (["fit", "--trainer.max_ep"], {"--trainer.max_epochs"}),
        (["stream", "--bou"], {"--bounds"}),
        (["predict", "--work"], {"--workers"}),
        (["export", "--form", "m"], {"merged"}),
        (["pool", "route", "--t"], {"--top"}),
    ],
)
def test_bash_completes(bash, words, expected):
    assert expected <= set(bash("moe-adapt", *words))


def test_every_command_is_completed(bash):
    assert set(bash("moe-adapt", "")) >= set(COMMANDS)
    assert {"--to", "--top"} <= set(bash("moe-adapt", "predict", "--"))


def test_zsh_has_a_script():
    pytest.importorskip("shtab", reason="needs shtab (extra 'completion')")
    assert script("zsh").startswith("#compdef moe-adapt")


def test_another_shell_is_refused(moe_adapt):
    assert "invalid choice: 'fish'" in moe_adapt("completion", "fish").err
