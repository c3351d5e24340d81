"""The outer level: finding commands, laziness, exit codes, and the small commands."""

import subprocess
import sys
from pathlib import Path

import pytest

from moe_adapt import __version__
from moe_adapt.cli import main
from moe_adapt.cli.main import COMMANDS
from moe_adapt.routing import SELECTORS
from moe_adapt.runs import custom
from moe_adapt.runs.config_names import packaged_configs
from moe_adapt.runs.messages import explain, options_of

SELECTOR = """\
from moe_adapt.routing import SELECTORS, DenseSelector
from moe_adapt.training.modules import SequenceClassifier

@SELECTORS.register("mine")
class MySelector(DenseSelector):
    pass

class MyClassifier(SequenceClassifier):
    def __init__(self, backbone: str, num_classes: int, extra: int = 1, **settings) -> None:
        super().__init__(backbone, num_classes, **settings)
"""


def test_light_commands_import_nothing_heavy():
    script = """
import sys
from moe_adapt.cli import main
codes = [main(words) for words in ([], ["--help"], ["--version"], ["list", "configs", "selectors"], ["nope"])]
assert codes == [0, 0, 0, 0, 2], codes
heavy = ("lightning", "transformers", "peft", "timm", "datasets", "jsonargparse", "matplotlib")
assert not [name for name in heavy if name in sys.modules]
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_help_names_every_command(moe_adapt):
    result = moe_adapt("--help")
    assert result.code == 0
    assert all(
        f"  {name} " in result.out and command.summary in result.out for name, command in COMMANDS.items()
    )
    assert moe_adapt("--version").out.strip() == __version__


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "demo"])
def test_every_command_explains_itself(moe_adapt, name):
    result = moe_adapt(name, "--help")
    assert result.code == 0
    assert result.out.startswith(f"usage: moe-adapt {name}")


def test_unknown_command(moe_adapt):
    result = moe_adapt("fti")
    assert result.code == 2
    assert result.err.startswith("error: unknown command 'fti'. Did you mean 'fit'")
    assert result.err.count("\n") == 1


@pytest.mark.parametrize("how", ["--debug", "environment"])
def test_debug_shows_the_traceback(moe_adapt, monkeypatch, how):
    if how == "environment":
        monkeypatch.setenv("MOE_ADAPT_DEBUG", "1")
    with pytest.raises(ValueError, match="unknown command"):
        moe_adapt("fti", *(["--debug"] if how == "--debug" else []))


def test_nothing_but_the_error_is_printed(moe_adapt):
    result = moe_adapt("fit", "--trainer.max_epoch=3")
    assert result.code == 2
    assert result.out == ""
    assert result.err.startswith(
        "error: unknown option --trainer.max_epoch. Did you mean 'trainer.max_epochs'"
    )
    assert result.err.count("\n") == 1


def test_model_help_lists_options(moe_adapt):
    result = moe_adapt("fit", "--model.help", "SequenceClassifier")
    assert result.code == 0
    assert "--model.pooling" in result.out
    assert "--model.router_lr" in result.out
    unknown = moe_adapt("fit", "--model.help", "SequenceClasifier")
    assert unknown.code == 2
    assert "Did you mean 'SequenceClassifier'" in unknown.err


def test_list_shows_every_name(moe_adapt, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    result = moe_adapt("list")
    assert result.code == 0
    for name in [*packaged_configs(), *SELECTORS, "load_balance", "linear", "temperature"]:
        assert name in result.out
    assert "Keeps the `k` largest select logits per token" in result.out
    wrong = moe_adapt("list", "selector")
    assert wrong.code == 2
    assert "there is no section, configuration or part 'selector'" in wrong.err


def test_doctor_reports_versions_and_faults(moe_adapt, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    healthy = moe_adapt("doctor")
    assert healthy.code == 0
    assert "jsonargparse" in healthy.out
    assert "ROUTED_LORA" in healthy.out
    from moe_adapt.cli import doctor

    monkeypatch.setattr(doctor, "requires", lambda name: ["torch>=999", "no-such-thing>=1"])
    ill = moe_adapt("doctor")
    assert ill.code == 2
    assert "error: this installation lacks: torch >=999; no-such-thing >=1." in ill.err


def test_export_passes_its_arguments_on(moe_adapt, monkeypatch, tmp_path):
    import moe_adapt.runs.export as hub

    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    Path("run", "moe_adapt_config.yaml").write_text("model: {}\n")

    calls = []
    monkeypatch.setattr(hub, "export_run", lambda run, to, **options: calls.append((run, to, options)))
    assert moe_adapt("export", "run", "--to", "there", "--checkpoint", "last", "--overwrite").code == 0
    run, target, options = calls[0]
    assert (run, target) == (Path("run"), Path("there"))
    assert options["checkpoint"] == "last" and options["overwrite"] and "form" not in options
    missing = moe_adapt("export", "run")
    assert missing.code == 2
    assert "--to" in missing.err
    typo = moe_adapt("export", "run", "--to", "there", "--chekpoint", "last")
    assert "Did you mean '--checkpoint'" in typo.err


def test_custom_modules_bring_classes_and_components(moe_adapt, tmp_path):
    Path("cli_custom_part.py").write_text(SELECTOR)
    Path("mine.yaml").write_text(
        "custom_modules: [cli_custom_part.py]\n"
        "model:\n  class_path: MyClassifier\n  init_args:\n    extra: 2\n"
        "    tuner: {selector: {name: mine}}\n"
    )
    words = ["--model.backbone", "x", "--data", "TextClassificationData", "--print_config"]
    for named in (["--config", "mine"], ["--config", "mine", "--custom_modules", "cli_custom_part.py"]):
        result = moe_adapt("fit", *named, *words)
        assert result.code == 0, result.err
        assert "class_path: cli_custom_part.MyClassifier" in result.out
        assert "mine" in SELECTORS
    del sys.modules["cli_custom_part"], SELECTORS._classes["mine"]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("json.py", "", "hides the module 'json'"),
        ("cli_custom_broken.py", "import no_such_module_here", "ModuleNotFoundError: No module named"),
        ("notes.txt", "", "expects a Python file"),
    ],
)
def test_bad_custom_modules(moe_adapt, name, content, expected):
    Path(name).write_text(content)
    result = moe_adapt("fit", "--custom_modules", name)
    assert result.code == 2
    assert expected in result.err
    assert Path(name).stem not in sys.modules or name == "json.py"


def test_split_custom_modules_keeps_the_other_arguments(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files, rest = custom.split_custom_modules(
        ["--a", "1", "--custom_modules", "x.py", "--b=2", "--custom_modules=y.py"]
    )
    assert files == [str(tmp_path / "x.py"), str(tmp_path / "y.py")]
    assert rest == ["--a", "1", "--b=2"]


def test_options_of_follows_keyword_arguments():
    options = options_of("moe_adapt.training.modules.SequenceClassifier")
    assert {"backbone", "num_classes", "pooling", "lr", "router_lr", "gradient_checkpointing"} <= set(options)
    assert "settings" not in options


def test_messages_of_other_shapes_are_kept():
    assert explain("something new went wrong", [], {}) == "something new went wrong"
    missing = explain("the following arguments are required: fit.data", [], {})
    assert missing == "missing: data. Give it as --data VALUE or in a --config."


def test_main_takes_the_arguments_of_the_process(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["moe-adapt", "--version"])
    assert main() == 0
    assert capsys.readouterr().out.strip() == __version__


@pytest.mark.parametrize("task", ["sequence_classification", "causal_lm", "image_classification"])
def test_a_data_file_is_named_in_the_configuration_and_not_read_into_it(moe_adapt, tmp_path, task):
    rows = tmp_path / "rows.json"
    rows.write_text('[{"text": "a", "label": "b"}]')
    result = moe_adapt("fit", "--config", f"task/{task}", f"--data.train={rows}", "--print_config")
    assert result.code == 0
    assert f"train: {rows}" in result.out


def test_a_custom_module_in_a_folder_that_python_searches(tmp_path, monkeypatch):
    path = tmp_path / "searched_selector.py"
    path.write_text("value = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    custom.import_custom_modules([str(path)])
    assert sys.modules.pop("searched_selector").value == 1
