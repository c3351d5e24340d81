import gzip
import json
import os

import pytest
from datasets import Dataset, DatasetDict

from moe_adapt.data.tables import load_table, require_columns, texts_of
from moe_adapt.errors import UserError

ROWS = [{"text": "NA", "label": 1}, {"text": "b, c", "label": 0}]


def write(path, kind):
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    elif kind == "json":
        path.write_text(json.dumps(ROWS, indent=1))
    elif kind == "csv":
        path.write_text('text,label\nNA,1\n"b, c",0\n')
    elif kind == "tsv":
        path.write_text("text\tlabel\nNA\t1\nb, c\t0\n")
    elif kind == "parquet":
        Dataset.from_list(ROWS).to_parquet(path)
    elif kind == "json.gz":
        path.write_bytes(gzip.compress(json.dumps(ROWS).encode()))
    return str(path)


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "tsv", "parquet", "json.gz"])
def test_files_give_the_same_rows(tmp_path, kind):
    """A text such as NA stays a text; a cell of a CSV or TSV file is one, whatever it looks like."""
    found = load_table(write(tmp_path / f"rows.{kind}", kind)).to_list()
    texts = kind in ("csv", "tsv")
    assert found == [{**row, "label": str(row["label"])} if texts else row for row in ROWS]


def test_memory_and_dataset():
    assert load_table(ROWS).to_list() == ROWS
    assert load_table(Dataset.from_list(ROWS)).to_list() == ROWS


def test_text_file_is_one_document(tmp_path):
    (tmp_path / "book.txt").write_text("one\n\ntwo\n")
    assert load_table(str(tmp_path / "book.txt")).to_list() == [{"text": "one\n\ntwo\n"}]


def test_saved_folders(tmp_path):
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "one")
    DatasetDict(train=Dataset.from_list(ROWS), test=Dataset.from_list(ROWS[:1])).save_to_disk(
        tmp_path / "two"
    )
    assert load_table(str(tmp_path / "one")).to_list() == ROWS
    assert load_table(str(tmp_path / "two"), "train").to_list() == ROWS
    assert load_table(f"{tmp_path / 'two'}@test", "train").to_list() == ROWS[:1]
    with pytest.raises(UserError, match="has no split 'validation': it has train, test"):
        load_table(str(tmp_path / "two"), "validation")


def test_folder_of_data_files(tmp_path):
    write(tmp_path / "train.jsonl", "jsonl")
    assert load_table(str(tmp_path), "train").to_list() == ROWS


def test_header_less_file(tmp_path):
    (tmp_path / "rows.tsv").write_text("good film\t1\nbad film\t0\n")
    table = load_table(str(tmp_path / "rows.tsv"), column_names=["text", "label"])
    assert table.to_list() == [{"text": "good film", "label": "1"}, {"text": "bad film", "label": "0"}]


def test_missing_file_suggests_its_neighbour(tmp_path):
    write(tmp_path / "train.jsonl", "jsonl")
    with pytest.raises(UserError, match=r"there is no file .*trian.jsonl. Did you mean 'train.jsonl'\?"):
        load_table(str(tmp_path / "trian.jsonl"))


def test_unknown_extension(tmp_path):
    (tmp_path / "rows.xlsx").write_text("x")
    with pytest.raises(UserError, match=r"unknown extension '.xlsx': expected one of .json, .jsonl"):
        load_table(str(tmp_path / "rows.xlsx"))


def test_unreadable_content(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n{"text": ')
    with pytest.raises(UserError, match=r"rows.jsonl, line 2 is not JSON: Expecting value"):
        load_table(str(tmp_path / "rows.jsonl"))


@pytest.mark.parametrize("content", ["", "text,label\n"])
def test_empty_file(tmp_path, content):
    (tmp_path / "rows.csv").write_text(content)
    with pytest.raises(UserError, match="empty"):
        load_table(str(tmp_path / "rows.csv"))


def test_empty_list():
    with pytest.raises(UserError, match="the test split from the rows given in memory is empty"):
        load_table([], "test")


def test_unknown_name_is_one_sentence(monkeypatch):
    def refuse(*args, **kwargs):
        raise ConnectionError("Couldn't reach 'no_such_set' on the Hub")

    monkeypatch.setattr("moe_adapt.data.tables.load_dataset", refuse)
    with pytest.raises(UserError, match="'no_such_set' is no file or folder here, and could not be loaded"):
        load_table("no_such_set@train")


def test_hub_name_configuration_and_split(monkeypatch):
    asked = []

    def answer(*args, **kwargs):
        asked.append((*args, kwargs["split"]))
        return Dataset.from_list(ROWS)

    monkeypatch.setattr("moe_adapt.data.tables.load_dataset", answer)
    load_table("glue:sst2@train[:10%]")
    load_table("org/name", "validation")
    assert asked == [("glue", "sst2", "train[:10%]"), ("org/name", None, "validation")]


def test_missing_column_lists_the_columns():
    with pytest.raises(UserError, match=r"no column 'txt'. Did you mean 'text'\? Its columns: text, label."):
        require_columns(load_table(ROWS), ["label", "txt"], ROWS)


def test_all_missing_columns_are_told_at_once():
    table = load_table([{"message": "hello", "topic": "greeting"}], "train")
    options = {"text": "--data.text_column", "label": "--data.label_column"}
    with pytest.raises(UserError, match=r"no columns 'text' and 'label'\.") as caught:
        require_columns(table, ["text", "label"], "rows.csv", options)
    assert "Its columns: message, topic." in str(caught.value)
    assert "Choose them with --data.text_column NAME --data.label_column NAME." in str(caught.value)


def test_rows_without_text_are_named():
    rows = [{"text": "a"}, {"text": None}]
    with pytest.raises(UserError, match="row 1 of the rows given in memory has None in column 'text'"):
        texts_of(load_table(rows), "text", rows)


@pytest.mark.parametrize(
    "name", ["run[1]/train.jsonl", "set?.jsonl", "st*r.jsonl", "a::b.jsonl", "zip:x.csv"]
)
def test_a_path_names_one_file(tmp_path, name):
    """Neighbours that a pattern would match are not read."""
    for path in (tmp_path / name, tmp_path / name.replace("[1]", "1").replace("?", "X").replace("*", "X")):
        path.parent.mkdir(exist_ok=True)
        path.write_text('{"text": "one"}\n' if path.name == name.rsplit("/")[-1] else '{"text": "two"}\n')
    (tmp_path / name).write_text("text\none\n" if name.endswith("csv") else '{"text": "one"}\n')
    assert load_table(str(tmp_path / name)).to_list() == [{"text": "one"}]


def test_cells_stay_as_they_are_written(tmp_path):
    cells = ["007", "1e3", "2020-05-17", "true", "NA", "null", " x ", "9" * 30, "-0", "1_000", "0x1F", ""]
    (tmp_path / "a.csv").write_text("id,cell\n" + "".join(f"{i},{cell}\n" for i, cell in enumerate(cells)))
    assert load_table(str(tmp_path / "a.csv"))["cell"] == cells
    values = [*cells, 10**30, 1.5, None, True, [1, "a"], {"k": 1}, "1969-07-20T20:17:00+02:00"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"cell": value}) + "\n" for value in values))
    assert load_table(str(tmp_path / "a.jsonl"))["cell"] == values


def test_a_column_may_change_its_type_late(tmp_path):
    rows = [{"x": i} for i in range(12_000)] + [{"x": "late"}, {"y": 1}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert load_table(str(tmp_path / "a.jsonl"))["x"] == [*range(12_000), "late", None]


def test_quotes_are_characters_in_tsv(tmp_path):
    (tmp_path / "q.tsv").write_text('text\tlabel\n"a lone quote\tpos\nplain\tneg\n"b "\tpos\n')
    assert load_table(str(tmp_path / "q.tsv"))["label"] == ["pos", "neg", "pos"]


def test_quotes_enclose_cells_in_csv(tmp_path):
    (tmp_path / "q.csv").write_text('text,label\n"a, ""b""\nc",pos\nd"e,neg\n')
    assert load_table(str(tmp_path / "q.csv"))["text"] == ['a, "b"\nc', 'd"e']


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('text,label\n"open,pos\nplain,neg\n', "line 3.*close the quote"),
        ('text,label\n"open,pos\n"more,neg\n', "line 3.*close the quote"),
        ("text,label\na,b,c\n", "line 2 has 3 cells, expected 2"),
        ("text,label\na\n", "line 2 has 1 cells, expected 2"),
        ("text,text\na,b\n", "two columns named 'text'"),
    ],
)
def test_rows_never_vanish(tmp_path, content, message):
    (tmp_path / "rows.csv").write_text(content)
    with pytest.raises(UserError, match=message):
        load_table(str(tmp_path / "rows.csv"))


@pytest.mark.parametrize("separator", ["\u2028", "\u0085", "\x0b", "\x0c", "\x1c"])
def test_only_a_line_feed_ends_a_line_of_json(tmp_path, separator):
    (tmp_path / "a.jsonl").write_bytes(
        b"\xef\xbb\xbf" + json.dumps({"t": f"a{separator}b"}, ensure_ascii=False).encode() + b"\r\n\n"
        if separator in "\u2028\u0085"
        else json.dumps({"t": f"a{separator}b"}).encode()
    )
    assert load_table(str(tmp_path / "a.jsonl")).to_list() == [{"t": f"a{separator}b"}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"t": "café"}\n'.encode("latin-1"), r"is not UTF-8 text \(line 1\)"),
        ("a.csv", "t\na\ncafé\n".encode("utf-16"), r"is not UTF-8 text"),
        ("a.csv.gz", gzip.compress(b"t\na\n" * 99, mtime=0)[:-9], "is damaged or not a .gz file"),
        ("a.csv.xz", b"t\na\n", "is damaged or not a .xz file"),
        ("a.csv.zip", b"t\na\n", "is damaged or not a .zip file"),
        ("a.csv.zst", b"t\na\n", "is damaged or not a .zst file"),
        ("a.parquet", b"PAR1PAR1", "is damaged or not a parquet file"),
        ("a.json", b"[[1]]", "expected a list of objects"),
        ("a.jsonl", b"[" * 100_000, "line 1"),
    ],
)
def test_files_that_are_something_else(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_table(str(tmp_path / name))


def test_a_bomb_does_not_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("moe_adapt.textfiles.MOST_BYTES", 10**6)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"\0" * (5 * 10**6)))
    with pytest.raises(UserError, match="it unpacks to more than"):
        load_table(str(tmp_path / "a.txt.gz"))


def test_a_rewritten_file_is_read_again(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"t": 1}\n')
    stamp = path.stat()
    assert load_table(str(path)).to_list() == [{"t": 1}]
    path.write_text('{"t": 2}\n')
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert load_table(str(path)).to_list() == [{"t": 2}]


def test_folders_of_files_read_as_the_files_do(tmp_path):
    for name in (
        "train/part-2.jsonl",
        "train/part-1.jsonl",
        "dev.csv",
        "eval/x.parquet",
        ".hidden/train.jsonl",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, name.rsplit(".", 1)[-1])
    assert load_table(str(tmp_path), "train").to_list() == [*ROWS, *ROWS]
    assert (
        load_table(str(tmp_path), "validation").to_list() == load_table(str(tmp_path / "dev.csv")).to_list()
    )
    assert load_table(f"{tmp_path}@test").to_list() == ROWS
    (tmp_path / "train/part-3.jsonl").write_text('{"other": 1}\n')
    with pytest.raises(UserError, match="files of one split have the same columns"):
        load_table(str(tmp_path), "train")
