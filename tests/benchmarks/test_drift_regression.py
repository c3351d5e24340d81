"""The table of the regressor in the guide is that of the committed file."""

import importlib.util
import json
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def test_the_guide_shows_the_committed_numbers():
    spec = importlib.util.spec_from_file_location("regression", REPOSITORY / "benchmarks/drift/regression.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    content = json.loads((REPOSITORY / "benchmarks/results/drift_regression.json").read_text())
    assert "\n".join(script.table(content)) in (REPOSITORY / "docs/drift.md").read_text()
