"""What the documentation shows works: marked blocks run, commands parse, Python compiles."""

import ast

import pytest

from moe_adapt.cli import main
from moe_adapt.cli.main import COMMANDS
from tests.markdown import PAGES, REPOSITORY, Block, blocks, furnish, with_stand_ins

PAGE = {page.relative_to(REPOSITORY).as_posix(): blocks(page) for page in PAGES}
CONFIGURED_COMMANDS = ("fit", "validate", "test", "stream")


def is_run(page: list[Block]) -> bool:
    return any(block.marked for block in page)


@pytest.mark.parametrize("name", [name for name, page in PAGE.items() if is_run(page)])
def test_marked_blocks_run(name, place, capsys):
    furnish(place, PAGE[name])
    namespace: dict[str, object] = {"__name__": "__main__"}
    for block in PAGE[name]:
        if not block.marked:
            continue
        if block.language == "python":
            exec(compile(with_stand_ins(block.text), f"{name}:{block.line}", "exec"), namespace)
        for words in block.commands():
            code = main([with_stand_ins(word) for word in words])
            assert code == 0, f"{name}:{block.line}: {capsys.readouterr().err}"


def unmarked_commands() -> list:
    return [
        pytest.param(page, words, id=f"{name}:{block.line}-{words[0] if words else ''}")
        for name, page in PAGE.items()
        for block in page
        for words in block.commands()
        if not block.marked
    ]


@pytest.mark.parametrize(("page", "words"), unmarked_commands())
def test_commands_parse(page, words, place, capsys):
    assert words[0] in COMMANDS or words[0] in ("--help", "--version")
    of_a_run = any(word.startswith("runs/") and word.endswith(".yaml") for word in words)
    if of_a_run or any("help" in word for word in words):
        return
    if words[0] in CONFIGURED_COMMANDS or (words[0] == "predict" and "--config" in words):
        furnish(place, page)
        assert main([*words, "--print_config"]) == 0, capsys.readouterr().err
        return
    assert main([*(words[:2] if words[0] == "pool" else words[:1]), "--help"]) == 0
    known = capsys.readouterr().out
    assert all(word.partition("=")[0] in known for word in words if word.startswith("--"))


@pytest.mark.parametrize("name", PAGE)
def test_python_compiles(name):
    for block in PAGE[name]:
        if block.language == "python":
            ast.parse(block.text, f"{name}:{block.line}")
