"""Streams from one's own files: every kind of file, nominal columns, dates, and what cannot be a stream."""

import gzip
import json
import math
import warnings

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
        ("", {}, "0 columns"),
        ("a,y\n1,2,3\n1,2,3,4\n", {}, "line 2 has 3 cells, expected 2"),
        ("a,a,y\n1,2,3\n", {}, "two columns named 'a'"),
        ("a,y\n1,0\n2,1\n", {"n_rows": 0}, "n_rows must be at least 1"),
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
    with pytest.raises(UserError, match=r"damaged or not a \.gz file"):
        file_stream(tmp_path / "mine.csv.gz")


def test_whole_numbers_as_labels_stay_whole(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("a,y\n1,0\n2,1\n3,1\n")
    assert [y for _, y in file_stream(path)] == [0, 1, 1]
    assert not any(math.isnan(x["a"]) for x, _ in file_stream(path))


def stream_of(path, text, **options):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file_stream(path, **options)


def test_cells_stay_as_they_are_written(tmp_path):
    """A lone quote in TSV, codes, words that look missing, separators that end no line."""
    text = 'a\tb\tc\ty\n"lone\t007\tNA\tNA\nx\u2028z\t12\tred\tnull\n"b "\t3\tblue\tNA\n'
    found = stream_of(tmp_path / "a.tsv", text)
    assert [list(x.values()) for x, _ in found] == [
        ['"lone', "007", "NA"],
        ["x\u2028z", "12", "red"],
        ['"b "', "3", "blue"],
    ]
    assert [y for _, y in found] == ["NA", "null", "NA"]


def test_missing_among_numbers(tmp_path):
    found = stream_of(tmp_path / "a.csv", b"\xef\xbb\xbfa,y\n1,p\nNA,q\n,p\n1e3,q\n.5,p\n")
    assert [x.get("a") for x, _ in found] == [1.0, None, None, 1000.0, 0.5] and not found.nominal


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["007", "7"], ["007", "7"]),
        (["0", "1"], [0, 1]),
        (["1.0", "2.0"], [1, 2]),
        (["0.5", "2"], [0.5, 2]),
        (["True", "1"], ["True", "1"]),
        (["9" * 20, "1"], [int("9" * 20), 1]),
    ],
)
def test_labels_of_text(tmp_path, labels, expected):
    rows = "".join(f"{i},{label}\n" for i, label in enumerate(labels))
    assert [y for _, y in stream_of(tmp_path / "a.csv", f"a,y\n{rows}")] == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("[1, true]", "is a number in row 1 and a truth value in row 2"),
        ('[0.5, "x"]', "is a number in row 1 and a text in row 2"),
        ("[[1], 2]", r"is '\[1\]' in row 1; write a text or a number"),
        ("[1, null]", "missing in 1 rows, first in row 2"),
    ],
)
def test_labels_of_json_are_of_one_kind(tmp_path, values, message):
    lines = "".join(json.dumps({"a": 1, "y": value}) + "\n" for value in json.loads(values))
    with pytest.raises(UserError, match=message):
        stream_of(tmp_path / "a.jsonl", lines)


def test_a_column_that_changes_late_is_one_of_words(tmp_path):
    rows = "".join(f"{i},{i % 2}\n" for i in range(12_000)) + "late,1\n"
    found = stream_of(tmp_path / "a.csv", f"a,y\n{rows}")
    assert found.nominal == {"a"} and next(iter(found))[0] == {"a": "0"}


def test_numbers_beyond_doubles_are_told(tmp_path):
    with pytest.raises(UserError, match="'a' is infinite in row 1"):
        stream_of(tmp_path / "a.jsonl", '{"a": 1' + "0" * 400 + ', "y": 1}\n{"a": 1, "y": 2}\n')


def test_text_of_another_encoding(tmp_path):
    for name in ("a.csv", "a.arff", "a.jsonl"):
        with pytest.raises(UserError, match=r"is not UTF-8 text \(line 2\)"):
            stream_of(tmp_path / name, "a,y\ncafé,1\n".encode("latin-1") if name[-1] == "v" else b"\n\xe9")


def test_quotes_of_arff(tmp_path):
    head = "@relation x\n@attribute c {u,'v,w'}\n@attribute n real\n@attribute y {0,1}\n@data\n"
    found = stream_of(tmp_path / "a.arff", head + "'v, w',1,0\n'?',?,1\n?,2,1\n")
    assert [x.get("c") for x, _ in found] == ["v, w", "?", None]
    with pytest.raises(UserError, match="line 6 has 'x' in the numeric column 'n'"):
        stream_of(tmp_path / "a.arff", head + "u,x,0\n")


@pytest.mark.parametrize(
    ("cell", "place", "said"),
    [
        ("n.n.", 50, r"'x' is read as names: 99 of 100 cells are numbers, but row 51 is 'n\.n\.'"),
        ("\x00", 99, "99 of 100 cells are numbers, but row 100"),
    ],
)
def test_a_word_in_a_column_of_numbers_is_told(tmp_path, cell, place, said):
    cells = [str(row / 8) for row in range(100)]
    cells[place] = cell
    (tmp_path / "rows.csv").write_text("x,y\n" + "".join(f"{x},{row % 2}\n" for row, x in enumerate(cells)))
    with pytest.warns(UserWarning, match=said):
        stream = file_stream(tmp_path / "rows.csv")
    assert stream.nominal == {"x"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        file_stream(tmp_path / "rows.csv", nominal=["x"])


@pytest.mark.parametrize("form", ["${}.50", "{},5", "user-{}"])
def test_names_that_do_not_come_back_are_told(tmp_path, form):
    rows = "".join(f'"{form.format(row)}",{row % 2}\n' for row in range(60))
    (tmp_path / "rows.csv").write_text("x,y\n" + rows)
    with pytest.warns(UserWarning, match="60 different ones in 60 rows"):
        file_stream(tmp_path / "rows.csv")


def test_labels_that_do_not_come_back_are_refused(tmp_path):
    (tmp_path / "rows.csv").write_text("x,y\n" + "".join(f"{row % 7},{row / 8}\n" for row in range(60)))
    with pytest.raises(UserError, match="60 different values in 60 rows; is it an identifier, or a number"):
        file_stream(tmp_path / "rows.csv")


def test_ordinary_columns_raise_no_doubt(tmp_path):
    colours = ["red", "blue", "7", "NA"]
    rows = "".join(f"{colours[row % 4]},{row / 8},{row % 2}\n" for row in range(80))
    (tmp_path / "rows.csv").write_text("c,x,y\n" + rows)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert file_stream(tmp_path / "rows.csv").nominal == {"c"}
