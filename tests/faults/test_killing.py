"""A command that is killed at any file operation and run again ends as if it had not been killed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

KILLING = Path(__file__).with_name("killing.py")


def killed(name: str, folder: Path, every: int, first: int = 1) -> dict:
    words = [sys.executable, str(KILLING), name, str(folder), str(every), str(first)]
    ended = subprocess.run(words, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return json.loads(ended.stdout.splitlines()[-1])


def test_a_pool_at_some_operations(tmp_path):
    found = killed("pool", tmp_path, every=3)
    assert found["kills"] >= 3 and found["faults"] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["fit", "stream", "drift", "export", "pool", "sweep", "compose", "compose_add", "compose_remove"],
)
def test_everywhere(name, tmp_path):
    found = killed(name, tmp_path, every=1)
    assert found["kills"] == found["operations"] and found["faults"] == []
