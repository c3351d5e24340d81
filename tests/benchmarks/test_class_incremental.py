"""The recipes of the class-incremental benchmark parse as `moe-adapt stream` reads them."""

from itertools import product
from pathlib import Path

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
