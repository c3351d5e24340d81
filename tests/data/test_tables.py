import gzip
import json

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
    """A text such as NA stays a text."""
    assert load_table(write(tmp_path / f"rows.{kind}", kind)).to_list() == ROWS


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
    assert table.to_list() == [{"text": "good film", "label": 1}, {"text": "bad film", "label": 0}]


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
    with pytest.raises(UserError, match=r"rows.jsonl cannot be read as jsonl: JSON parse error"):
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


def test_rows_without_text_are_named():
    rows = [{"text": "a"}, {"text": None}]
    with pytest.raises(UserError, match="row 1 of the rows given in memory has None in column 'text'"):
        texts_of(load_table(rows), "text", rows)
