"""The committed file of a drift comparison: cells are added by seed, each with its manifest."""

import importlib.util

import pytest

from tests.markdown import REPOSITORY


@pytest.fixture(scope="module")
def summarise():
    spec = importlib.util.spec_from_file_location("summarise", REPOSITORY / "benchmarks/drift/summarise.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_rows_are_kept_by_seed_with_their_manifests(summarise, tmp_path):
    rows = {"s": {"m": {2: ({"seed": 2, "accuracy": 0.5}, {"commit": "a"})}}}
    path = tmp_path / "file.json"
    summarise.write_json(path, summarise.content_of(rows, "Title"))
    again = summarise.kept_rows(path)
    again["s"]["m"][1] = ({"seed": 1, "accuracy": 0.6}, {"commit": "b"})
    content = summarise.content_of(again, "Title")
    own = content["results"]["s"]["m"]
    assert [row["seed"] for row in own] == [1, 2]
    assert [content["manifests"][row["manifest"]] for row in own] == [{"commit": "b"}, {"commit": "a"}]
