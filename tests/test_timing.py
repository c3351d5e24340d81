"""No test depends on how fast the machine is: none sleeps, sets a time limit or has a deadline.

A test that waits for another process reads what it says, or waits for its end. The limit in pyproject.toml
ends tests that hang, an hour later.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FILES = sorted(HERE.rglob("*.py"))


def timed(tree: ast.AST) -> Iterator[str]:
    """Yield the calls that sleep, and those with a time limit that is a number."""
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        gives_way = [ast.unparse(argument) for argument in call.args] == ["0"]
        if ast.unparse(call.func).rpartition(".")[2] == "sleep" and not gives_way:
            yield ast.unparse(call)
        for keyword in call.keywords:
            if (
                keyword.arg in ("timeout", "deadline", "timeout_seconds")
                and ast.unparse(keyword.value) != "None"
            ):
                yield ast.unparse(call)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(HERE)))
def test_it_does_not_watch_the_clock(path):
    assert list(timed(ast.parse(path.read_text(encoding="utf-8")))) == []


def test_watching_the_clock_is_found():
    source = "time.sleep(1)\nasyncio.sleep(0)\nrun(x, timeout=3)\nset(deadline=None)\nset(deadline=5)"
    assert list(timed(ast.parse(source))) == ["time.sleep(1)", "run(x, timeout=3)", "set(deadline=5)"]
