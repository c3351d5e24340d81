"""The routing method that docs/adding_a_method.md shows: for oneself one file, for everybody three."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from moe_adapt.checks import check_selector
from moe_adapt.cli import main
from moe_adapt.routing import SELECTORS
from moe_adapt.runs.custom import import_custom_modules
from tests.markdown import REPOSITORY, Block, blocks, furnish, with_stand_ins


@pytest.fixture
def page(place: Path) -> list[Block]:
    found = blocks(REPOSITORY / "docs" / "adding_a_method.md")
    furnish(place, found)
    return found


def command(page: list[Block]) -> list[str]:
    (words,) = [words for block in page for words in block.commands()]
    return [with_stand_ins(word) for word in words]


def test_the_selector_passes_the_public_check(page):
    import_custom_modules(["min_p.py"])
    for block in page:
        if block.language == "python" and block.file is None:
            exec(block.text, {})
    for share in (0.1, 1.0):
        check_selector(SELECTORS.build({"name": "min_p", "share": share}))


def test_the_selector_trains_and_is_exported(page, capsys):
    words = [*command(page), "--trainer.max_steps", "2", "--data.batch_size", "8"]
    assert main(words) == 0, capsys.readouterr().err
    manifest = json.loads(Path("runs/min_p/manifest.json").read_text())
    assert manifest["steps"] == 2
    assert main(["export", "runs/min_p", "--to", "adapter"]) == 0, capsys.readouterr().err
    config = json.loads(Path("adapter/adapter_config.json").read_text())
    assert config["selector"] == {"name": "min_p", "share": 0.3}
    assert config["method"] == "top_k"


#: Asks a copy of the package for the new method: by its preset, in the list, on the command line.
ASK = """
import importlib.machinery, sys
sys.meta_path.insert(0, importlib.machinery.PathFinder)  # before the finder of an editable installation
sys.path.insert(0, sys.argv[1])
from moe_adapt.cli import main
from moe_adapt.tuner import RoutedLoraConfig
assert RoutedLoraConfig(method="min_p").selector == {"name": "min_p", "share": 0.3}
assert main(["list", "min_p"]) == 0
words = ["--config", "task/causal_lm", "--config", "routed_lora/min_p", "--model.backbone", "any"]
assert main(["fit", *words, "--print_config"]) == 0
"""


def test_a_method_for_everybody_is_a_module_a_line_and_a_yaml(page, tmp_path):
    package = tmp_path / "copy" / "moe_adapt"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(REPOSITORY / "moe_adapt", package, ignore=ignored)
    shutil.copytree(REPOSITORY / "configs", package / "configs", ignore=ignored)
    before = {path: path.read_bytes() for path in package.rglob("*") if path.is_file()}

    selectors = package / "routing" / "selectors"
    (selectors / "min_p.py").write_text(Path("min_p.py").read_text())
    with (selectors / "__init__.py").open("a") as file:
        file.write("from moe_adapt.routing.selectors.min_p import MinPSelector as MinPSelector\n")
    preset = (package / "configs" / "routed_lora" / "top_k.yaml").read_text()
    preset = preset.replace("method: top_k", "method: min_p")
    preset = re.sub(r"selector: \{.*?\}", "selector: {name: min_p, share: 0.3}", preset)
    (package / "configs" / "routed_lora" / "min_p.yaml").write_text(preset)

    after = {path: path.read_bytes() for path in package.rglob("*") if path.is_file()}
    assert len([path for path in after if after[path] != before.get(path)]) == 3
    run = subprocess.run(
        [sys.executable, "-B", "-c", ASK, str(package.parent)], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert "name: min_p" in run.stdout and "selector min_p" in run.stdout
    assert str(package) in run.stdout, "the copy was asked, not the installed package"
