"""What was compiled is compiled anew when any file that it is made of changes."""

import ast
import shutil
from pathlib import Path

import pytest

pytest.importorskip("numba", reason="the compiled path needs numba")

from moe_adapt import drift
from moe_adapt.drift.compiled import jit, row

FOLDER = Path(drift.__file__).parent
#: Files that run in Python only.
NOT_COMPILED = {"__init__.py", "engine.py", "layout.py", "jit.py"}


@pytest.fixture
def copy(tmp_path):
    for name in ("compiled", "committee", "hoeffding", "parts"):
        shutil.copytree(FOLDER / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_every_file_that_compiled_code_is_made_of_changes_the_hash(copy):
    before = jit.source_hash.__wrapped__(copy)
    assert before == jit.source_hash(FOLDER)
    for path in (*(copy / "compiled").glob("*.py"), *(copy / name for name in jit.CONSTANTS)):
        text = path.read_text()
        path.write_text(text + "\n")
        assert jit.source_hash.__wrapped__(copy) != before, path.name
        path.write_text(text)
    assert jit.source_hash.__wrapped__(copy) == before


def test_all_constants_come_from_files_in_the_hash():
    needed = set()
    for path in (FOLDER / "compiled").glob("*.py"):
        if path.name not in NOT_COMPILED:
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ImportFrom) and node.module.startswith("moe_adapt."):
                    needed.add(node.module.removeprefix("moe_adapt.drift.").replace(".", "/") + ".py")
    assert {name for name in needed if not name.startswith("compiled/")} <= set(jit.CONSTANTS)


@pytest.mark.parametrize("name", ["learn", "look", "renew_tree", "split_again", "train", "watch"])
def test_entries_are_kept_under_that_hash(name):
    kept = getattr(row, name)._cache._cache_file
    assert kept._source_stamp == jit.source_hash(FOLDER)
    overloads = {"a signature": "a file"}
    stale = type(kept)(kept._cache_path, "hash_test", "another hash")
    stale._save_index(overloads)
    try:
        fresh = type(kept)(kept._cache_path, "hash_test", jit.source_hash(FOLDER))
        assert stale._load_index() == overloads and fresh._load_index() == {}
    finally:
        Path(stale._index_path).unlink()
