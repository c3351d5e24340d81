"""Every packaged configuration is parsed against the real signatures."""

import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import pytest
import yaml

from moe_adapt.cli import main
from moe_adapt.runs.config_names import config_root, first_line, packaged_configs, resolve_config
from moe_adapt.tuner import RoutedLoraConfig
from moe_adapt.tuner.methods import METHODS, stream_learner

#: Those of `moe-adapt fit`; recipes of `moe-adapt drift` are read in tests/drift/comparison.
CONFIGS = {name: path for name, path in packaged_configs().items() if not name.startswith("drift/")}
#: Layers that only the learner of a stream can use.
LAYERS = {name: stream_learner(path.read_text()) for name, path in CONFIGS.items()}
OFFERED = [name for name in CONFIGS if LAYERS[name] is None]
REPOSITORY = Path(__file__).parents[1]


def with_companions(name: str) -> list[str]:
    """The configuration after those that its header asks for (``# with: a, b``)."""
    header = re.search(r"^# with: (.+)$", CONFIGS[name].read_text(), re.MULTILINE)
    companions = header.group(1).split(", ") if header else []
    return [*companions, name]


def command_of(names: list[str]) -> list[str]:
    """The command that a configuration is for, with what it cannot know."""
    if not any(name.startswith(("stream/", "learner/")) for name in names):
        return ["fit", "--model.backbone", "some-backbone"]
    texts = "backbone" in yaml.safe_load(CONFIGS[names[0]].read_text())
    demo = "stream/demo" in names
    return ["stream"] if demo or not texts else ["stream", "--backbone.backbone", "some-backbone"]


def parse(capsys: pytest.CaptureFixture, names: list[str], *words: str) -> dict:
    configs = [word for name in names for word in ("--config", name)]
    command, *needed = command_of(names)
    code = main([command, *configs, *needed, *words, "--print_config"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return yaml.safe_load(captured.out)


@pytest.mark.parametrize("name", OFFERED)
def test_parses_against_the_real_signatures(name, capsys):
    names = with_companions(name)
    order = sorted(names, key=lambda key: not key.startswith(("task/", "stream/")))
    printed = parse(capsys, order)
    own = yaml.safe_load(CONFIGS[name].read_text())
    assert contains(printed, own)


def contains(whole: object, part: object) -> bool:
    if isinstance(part, dict):
        if isinstance(whole, dict) and "init_args" in whole and "class_path" not in part:
            whole = whole | whole["init_args"]
        return isinstance(whole, dict) and all(k in whole and contains(whole[k], v) for k, v in part.items())
    if isinstance(part, str) and isinstance(whole, str):
        return whole == part or whole.endswith(f".{part}")
    return whole == part


def tuner_of(printed: dict) -> RoutedLoraConfig:
    return RoutedLoraConfig(**printed["model"]["init_args"]["tuner"]["init_args"])


@pytest.mark.parametrize("name", CONFIGS)
def test_says_what_it_is(name):
    line = first_line(CONFIGS[name])
    assert CONFIGS[name].read_text().startswith("# ")
    assert 10 < len(line) <= 110


@pytest.mark.parametrize("method", [method for method in METHODS if f"routed_lora/{method}" in OFFERED])
def test_fit_takes_a_method_as_it_is(method, capsys):
    printed = parse(capsys, ["task/causal_lm", f"routed_lora/{method}"])
    assert tuner_of(printed) == RoutedLoraConfig(method=method)


def test_layers_of_stream_learners_are_not_offered_to_fit(capsys):
    layers = {name: learner for name, learner in LAYERS.items() if learner is not None}
    assert set(layers) == {"routed_lora/dymoe", "routed_lora/inc_moelora", "routed_lora/lora_sum"}
    for name, learner in layers.items():
        assert main(["fit", "--config", "task/causal_lm", "--config", name]) == 2
        assert f"run `moe-adapt stream --config {learner}`" in capsys.readouterr().err
        tuner = yaml.safe_load(CONFIGS[learner].read_text())["learner"]["init_args"]["tuner"]
        assert tuner["init_args"]["method"] == name.removeprefix("routed_lora/")


def test_later_method_replaces_the_earlier_one(capsys):
    printed = parse(capsys, ["task/causal_lm", "routed_lora/dynmole", "routed_lora/top_k"])
    assert tuner_of(printed) == RoutedLoraConfig(method="top_k")
    printed = parse(capsys, ["task/causal_lm", "routed_lora/top_k"], "--model.tuner", "null")
    assert printed["model"]["init_args"]["tuner"] is None


def test_seeds_are_integers():
    for path in CONFIGS.values():
        seed = (yaml.safe_load(path.read_text()) or {}).get("seed_everything", 0)
        assert type(seed) is int


#: What the user's files are given by.
DATA = {"train", "validation", "test", "folder", "train_file"}


@pytest.mark.parametrize("name", packaged_configs())
def test_names_no_file_of_the_user(name):
    """A file that happens to have that name in the working folder would be used in silence."""
    assert not list(named_files(yaml.safe_load(packaged_configs()[name].read_text()), ""))


def named_files(value: object, key: str) -> Iterator[object]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield from named_files(item, name)
    elif isinstance(value, list):
        for item in value:
            yield from named_files(item, key)
    elif value is not None and (key in DATA or re.search(r"\.(jsonl?|csv|tsv|txt|npz|parquet)$", str(value))):
        yield key, value


def test_disk_wins_over_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    packaged = resolve_config("routed_lora/dynmole")
    assert (
        packaged == resolve_config("routed_lora/dynmole.yaml") == config_root() / "routed_lora/dynmole.yaml"
    )
    local = tmp_path / "routed_lora" / "dynmole.yaml"
    local.parent.mkdir()
    local.write_text("model: {}")
    assert resolve_config("routed_lora/dynmole").resolve() == local
    assert resolve_config(str(local)) == local


def test_configs_are_found_where_the_package_is_installed():
    assert Path(str(files("moe_adapt.configs"))).joinpath("base.yaml").is_file()


@pytest.mark.slow
def test_wheel_ships_the_configs(tmp_path):
    source = tmp_path / "source"
    for folder in ("moe_adapt", "configs"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / folder, source / folder, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source / name)
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "."]
    subprocess.run([*build, "-w", str(tmp_path)], check=True, cwd=source)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    expected = {f"moe_adapt/configs/{name}.yaml" for name in packaged_configs()}
    assert expected | {"moe_adapt/configs/__init__.py", "moe_adapt/py.typed"} <= set(names)
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    script = "from moe_adapt.runs.config_names import config_root as r, packaged_configs as p; "
    script += "print(r(), len(p()))"
    command = [sys.executable, "-c", script]
    environment = {"PYTHONPATH": str(site), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(site / "moe_adapt" / "configs"), str(len(packaged_configs()))]
