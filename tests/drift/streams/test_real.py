"""Real streams: those that River ships, and files where there are some."""

import gzip
import os

import pytest

from moe_adapt.drift.streams.real import REAL_STREAMS, real_stream
from moe_adapt.errors import UserError

pytest.importorskip("river")


@pytest.mark.parametrize(("name", "rows", "classes"), [("image_segments", 2310, 7), ("shuttle", 49097, 2)])
def test_shipped(name, rows, classes):
    stream = real_stream(name)
    assert (len(stream), stream.n_classes) == (rows, classes)
    few = list(real_stream(name, 30))
    assert len(few) == 30
    assert tuple(few[0][0]) == stream.features


def test_file(tmp_path):
    with gzip.open(tmp_path / "weather.csv.gz", "wt") as file:
        file.write("a,b,target\n1.5,2,yes\n3,4,no\n")
    stream = real_stream("weather", folder=tmp_path)
    assert list(stream) == [({"a": 1.5, "b": 2.0}, 0), ({"a": 3.0, "b": 4.0}, 1)]


def test_missing_file_and_unknown_name(tmp_path, monkeypatch):
    monkeypatch.delenv("MOE_ADAPT_DATA", raising=False)
    with pytest.raises(UserError, match="MOE_ADAPT_DATA"):
        real_stream("weather")
    with pytest.raises(UserError, match=r"weather\.csv\.gz"):
        real_stream("weather", folder=tmp_path)
    with pytest.raises(UserError, match="Did you mean 'weather'"):
        real_stream("wether")


@pytest.mark.skipif("MOE_ADAPT_DATA" not in os.environ, reason="MOE_ADAPT_DATA is not set: no data files")
@pytest.mark.parametrize("name", REAL_STREAMS)
def test_real_files(name):
    try:
        stream = real_stream(name, 500)
    except UserError as missing:
        pytest.skip(str(missing))
    rows = list(stream)
    assert len(rows) == 500
    assert stream.nominal <= set(rows[0][0])
    assert all(isinstance(rows[0][0][column], str) for column in stream.nominal)
