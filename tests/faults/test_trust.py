"""What comes from somebody else runs nothing: each exploit would leave a marker file."""

import json
import sys

import pytest
import yaml

from moe_adapt.cli import main
from moe_adapt.errors import UserError
from moe_adapt.hub.arguments import check_options, rebuild
from moe_adapt.learners.parts import _build
from moe_adapt.reading import read_yaml
from moe_adapt.runs.rebuild import load_data, load_module
from moe_adapt.runs.trust import check_trusted, sign, trusting, what_runs_code


@pytest.fixture(autouse=True)
def state_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def foreign_run(tmp_path):
    """A run folder that would write a marker when its module is imported."""
    run = tmp_path / "foreign"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "best.ckpt").write_bytes(b"x")
    (run / "harmless_name.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w').close()\n")
    config = {
        "custom_modules": [str(run / "harmless_name.py")],
        "model": {"class_path": "SequenceClassifier", "init_args": {"backbone": "x", "num_classes": 2}},
        "data": {"class_path": "TextClassificationData", "init_args": {"tokenizer": "x"}},
    }
    (run / "moe_adapt_config.yaml").write_text(yaml.safe_dump(config))
    return run


@pytest.mark.parametrize("words", [["export", "RUN", "--to", "OUT"], ["trace", "RUN", "--to", "OUT"]])
def test_commands_on_a_foreign_run(foreign_run, tmp_path, words, capsys):
    code = main([{"RUN": str(foreign_run), "OUT": str(tmp_path / "out")}.get(word, word) for word in words])
    said = capsys.readouterr().err
    assert code == 2 and not (tmp_path / "marker").exists()
    assert "custom_modules imports" in said and "--trust" in said


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_a_foreign_configuration(foreign_run, tmp_path, command, capsys):
    code = main([command, "--config", str(foreign_run / "moe_adapt_config.yaml")])
    assert code == 2 and not (tmp_path / "marker").exists()
    assert "--trust" in capsys.readouterr().err


@pytest.mark.parametrize("load", [load_module, load_data])
def test_trust_runs_it(foreign_run, tmp_path, load):
    with pytest.raises(UserError, match="can run code"):
        load(foreign_run)
    sys.modules.pop("harmless_name", None)
    with pytest.raises(ValueError), trusting():
        load(foreign_run)  # there is no such backbone
    assert (tmp_path / "marker").exists()
    sys.modules.pop("harmless_name", None)


def test_own_runs_need_no_trust(foreign_run):
    path = foreign_run / "moe_adapt_config.yaml"
    config = yaml.safe_load(path.read_text())
    sign(path)
    check_trusted(path, config)
    path.write_text(path.read_text() + "# changed\n")
    with pytest.raises(UserError, match="It was not written here by you"):
        check_trusted(path, config)


def test_a_forged_signature(foreign_run, monkeypatch, tmp_path):
    path = foreign_run / "moe_adapt_config.yaml"
    sign(path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "of somebody else"))
    with pytest.raises(UserError, match="can run code"):
        check_trusted(path, yaml.safe_load(path.read_text()))


@pytest.mark.parametrize(
    "config",
    [
        {"model": {"init_args": {"model_kwargs": {"trust_remote_code": True}}}},
        {"trainer": {"callbacks": [{"class_path": "subprocess.Popen", "init_args": {"args": "x"}}]}},
        {"trainer": {"logger": {"class_path": "os.system"}}},
        {"model": {"init_args": {"optimizer": "shutil.rmtree"}}},
        {"model": {"init_args": {"model_kwargs": {"attn_implementation": "someone/kernel"}}}},
        {"custom_modules": ["x.py"]},
    ],
)
def test_what_runs_code(config):
    assert len(what_runs_code(config)) == 1


def test_trust_remote_code_in_any_yaml(tmp_path, capsys):
    config = {
        "model": {"class_path": "ImageClassifier", "init_args": {"model_kwargs": {"trust_remote_code": True}}}
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", str(tmp_path / "mine.yaml")]) == 2
    assert "lets a model run code of its own" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [
        {"model_kwargs": {"trust_remote_code": True}},
        {"model_kwargs": {"code_revision": "main"}},
        {"model_kwargs": {"attn_implementation": "someone/kernel"}},
        {"model_kwargs": {"img_size": {"a": 1}}},
        {"checkpoint": "/etc/passwd"},
        {"unknown": 1},
    ],
)
def test_options_of_a_published_learner(options):
    """They are refused before anything is built."""
    described = {"name": "org/model", "class": "ImageEncoder", "public": True, "options": options}
    with pytest.raises(UserError, match="ImageEncoder"):
        _build(described)


def test_harmless_options_of_a_published_learner():
    check_options(
        {"model_kwargs": {"img_size": 112, "global_pool": "avg"}, "dtype": "float32"},
        ["model_kwargs", "dtype"],
        "X",
    )


@pytest.mark.parametrize("name", ["/tmp", "..", "local-dir:/tmp", "org/model/../../x"])
def test_names_open_no_folder_here(name):
    described = {"name": name, "class": "ImageEncoder", "public": True, "options": {}}
    with pytest.raises(UserError, match="it names the backbone"):
        _build(described)


def test_a_folder_of_the_same_name_is_not_opened(tmp_path, monkeypatch):
    (tmp_path / "org" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    described = {"name": "org/model", "class": "TextEncoder", "public": True, "options": {}}
    with pytest.raises(UserError, match=r"there is a folder of that name here|none on the Hub"):
        _build(described)


@pytest.mark.parametrize(
    "value",
    [
        {"is": "optimizer os.system", "options": {}},
        {"is": "optimizer AdamW", "options": {"params": {"a": 1}}},
        {"is": "optimizer AdamW", "options": {"nope": 1}},
        {"is": "RoutedLoraConfig", "options": {"auto_mapping": {"parent_library": "os"}}},
        {"is": "RoutedLoraConfig", "options": {"experts_from": ["/tmp"]}},
        {"is": "subprocess.Popen"},
    ],
)
def test_settings_of_a_published_learner(value):
    with pytest.raises(UserError):
        rebuild(json.loads(json.dumps(value)))


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x,x,x,x,x,x,x,x,x,x]\n"
        + "".join(
            f"{c}: &{c} [{','.join(['*' + p] * 10)}]\n" for p, c in zip("abcdefgh", "bcdefghi", strict=True)
        ),
        "a: " + "[" * 100_000,
        "a: &a [*a]",
        "\n".join(" " * i + "k:" for i in range(200)),
        "a: !!python/object/apply:os.system [x]",
        "x" * 600_000,
        "a: 1\nb: : :",
        "\x00",
    ],
)
def test_yaml_that_does_harm(tmp_path, text):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(UserError, match=r"a\.yaml"):
        read_yaml(tmp_path / "a.yaml")


def test_yaml_of_another_encoding(tmp_path):
    (tmp_path / "a.yaml").write_bytes("ä: 1".encode("latin-1"))
    with pytest.raises(UserError, match=r"a\.yaml is not UTF-8 text"):
        read_yaml(tmp_path / "a.yaml")
