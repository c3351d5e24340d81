"""The recipes of the class-incremental benchmark parse as `moe-adapt stream` reads them; leads by hand."""

import importlib.util
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from moe_adapt.cli.stream import stream_parser

ROOT = Path(__file__).parents[2] / "benchmarks" / "class_incremental"
STREAMS = sorted((ROOT / "streams").glob("*.yaml"))
METHODS = sorted((ROOT / "methods").glob("*.yaml"))


@pytest.mark.parametrize(
    ("stream", "method"), [*product(STREAMS[:1], METHODS), *product(STREAMS[1:], METHODS[:1])]
)
def test_recipes_parse(stream, method):
    parsed = stream_parser().parse_args([f"--config={stream}", f"--config={method}"])
    data = stream.stem.rpartition("_")[0].removesuffix("_more")  # more samples of the same data
    assert parsed.stream.init_args.train.split("/")[0] == data


def test_every_file_says_what_it_is():
    for path in (*STREAMS, *METHODS):
        assert path.read_text().startswith("# ")


def leads():
    spec = importlib.util.spec_from_file_location("leads", ROOT / "leads.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def drawn(method, *answers):
    """Return rows of a method, one per draw, from strings of 1 for right and 0 for wrong."""
    bits = [np.array([int(digit) for digit in answer], dtype=bool) for answer in answers]
    return [
        {
            "method": method,
            "accuracy": float(right.mean()),
            "test_rows": len(right),
            "right": np.packbits(right).tobytes().hex(),
        }
        for right in bits
    ]


def test_a_lead_has_an_error_over_rows_and_one_over_draws():
    found = leads().difference(drawn("a", "1111100000", "1111000000"), drawn("b", "1110000000", "1110000000"))
    assert found["points"] == pytest.approx(15.0)
    paired = np.array([0, 0, 0, 100, 50, 0, 0, 0, 0, 0])
    assert found["rows"] == pytest.approx(1.96 * paired.std(ddof=1) / 10**0.5)
    assert found["draws"] == pytest.approx(12.706 * 5.0, rel=1e-3)


@pytest.mark.parametrize(
    ("ours", "theirs", "words"),
    [
        ("1" * 90 + "0" * 10, "1" * 40 + "0" * 60, "the winner"),
        ("1" * 41 + "0" * 59, "1" * 40 + "0" * 60, "no winner"),
        ("1" * 40 + "0" * 60, "1" * 50 + "0" * 50, "as published"),
    ],
)
def test_who_leads_in_words(ours, theirs, words):
    rows = {"slda_oas": drawn("slda_oas", ours), "ncm": drawn("ncm", theirs)}
    assert words in leads().leading(rows, {"slda_oas": "OAS", "ncm": "nearest mean"})
