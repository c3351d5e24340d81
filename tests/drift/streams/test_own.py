"""Streams from one's own files: every kind of file, nominal columns, dates, and what cannot be a stream."""

import gzip
import math

import pandas as pd
import pytest

from moe_adapt.drift.streams.own import file_stream
from moe_adapt.errors import UserError

TABLE = pd.DataFrame(
    {
        "size": [1.5, None, 3.0],
        "colour": ["red", "blue", None],
        "on": [True, False, True],
        "when": ["2024-01-01", "2024-01-02 12:00", "2024-01-03"],
        "zip": [10115, 20095, 10115],
        "y": ["a", "b", "a"],
    }
)
DAY = 1704067200.0
ROWS = [
    ({"size": 1.5, "colour": "red", "on": "True", "when": DAY, "zip": "10115"}, "a"),
    ({"colour": "blue", "on": "False", "when": DAY + 129600, "zip": "20095"}, "b"),
    ({"size": 3.0, "on": "True", "when": DAY + 172800, "zip": "10115"}, "a"),
]


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "tsv", "jsonl", "parquet"])
def test_every_kind_of_file_gives_the_same_rows(kind, tmp_path):
    path = tmp_path / f"mine.{kind}"
    if kind == "parquet":
        TABLE.to_parquet(path)
    elif kind == "jsonl":
        TABLE.to_json(path, orient="records", lines=True)
    else:
        TABLE.to_csv(path, index=False, sep="\t" if kind == "tsv" else ",")
    stream = file_stream(path, "y", nominal=["zip"])
    assert list(stream) == ROWS
    assert stream.nominal == {"colour", "on", "zip"} and stream.n_classes == 2 and stream.name == "mine"
    assert len(file_stream(path, "y", n_rows=2)) == 2


def test_arff(tmp_path):
    path = tmp_path / "mine.arff"
    path.write_text(
        "% note\n@relation x\n@attribute 'a b' numeric\n@attribute c {u,v}\n@ATTRIBUTE class {0,1}\n@data\n"
        "1.5,u,0\n?,v,1\n"
    )
    rows = list(file_stream(path))
    assert rows == [({"a b": 1.5, "c": "u"}, "0"), ({"c": "v"}, "1")]
    path.write_text("@relation x\n@attribute a numeric\n@attribute c {u,v}\n@data\n1\n")
    with pytest.raises(UserError, match="declares 2 columns"):
        file_stream(path)


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("a,y\n1,0\n2,1\n", {"label": "Y"}, "no column 'Y'.*Columns: a, y"),
        ("a,y\n1,0\n2,0\n", {"label": "y"}, "is 0 in every row"),
        ("a,y\n1,0\n2,\n", {}, "missing in 1 rows, first in row 2"),
        ("a,y\ninf,0\n2,1\n", {}, "'a' is infinite in row 1"),
        ("a,y\n1,0\n2,1\n", {"nominal": ["b"]}, "no column 'b'"),
        ("y\n1\n0\n", {}, "1 columns"),
        ("a,y\n", {}, "0 rows"),
        ("", {}, "cannot be read as csv"),
        ("a,y\n1,2,3\n1,2,3,4\n", {}, "cannot be read as csv"),
        ("a,y\n" + "".join(f"1,{t}\n" for t in range(1001)), {}, "1,001 different values"),
    ],
)
def test_what_cannot_be_a_stream_is_told_in_one_sentence(text, options, words, tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=words) as told:
        file_stream(path, **options)
    assert "\n" not in str(told.value)


def test_files_that_are_not_there_or_of_another_kind(tmp_path):
    with pytest.raises(UserError, match="no file"):
        file_stream(tmp_path / "none.csv")
    (tmp_path / "mine.xlsx").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"\.csv, \.tsv"):
        file_stream(tmp_path / "mine.xlsx")
    (tmp_path / "mine.csv.gz").write_bytes(gzip.compress(b"a,y\n1,0\n2,1\n")[:-6])
    with pytest.raises(UserError, match="cannot be read"):
        file_stream(tmp_path / "mine.csv.gz")


def test_whole_numbers_as_labels_stay_whole(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("a,y\n1,0\n2,1\n3,1\n")
    assert [y for _, y in file_stream(path)] == [0, 1, 1]
    assert not any(math.isnan(x["a"]) for x, _ in file_stream(path))
