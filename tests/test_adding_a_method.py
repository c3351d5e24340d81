"""The method of docs/adding_a_method.md: one file and one YAML, checked, trained and exported."""

import json
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
