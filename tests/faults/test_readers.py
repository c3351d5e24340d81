"""Commands read rows as training does: predictions, texts, questions; whatever the path is called."""

import gzip
import io
import json

import pytest

from moe_adapt.cli.texts import read_examples, read_texts
from moe_adapt.errors import UserError
from moe_adapt.hub.composition.questions import read_questions
from moe_adapt.serving.rows import read_rows
from moe_adapt.textfiles import separated_rows

CELLS = ["007", "NA", '"lone', "x\u2028y", "2020-05-17"]


def written(folder, kind):
    path = folder / f"run[1]*?.{kind}"
    cells = [json.dumps(cell)[1:-1].replace('\\"', '""') if "csv" in kind else cell for cell in CELLS]
    if "csv" in kind:
        text = "text,label\n" + "".join(f'"{cell}",1\n' for cell in cells)
        text = text.replace("\\u2028", "\u2028")
    elif "tsv" in kind:
        text = "text\tlabel\n" + "".join(f"{cell}\t1\n" for cell in cells)
    else:
        text = "".join(json.dumps({"text": c, "label": "1"}, ensure_ascii=False) + "\n" for c in CELLS)
    data = b"\xef\xbb\xbf" + text.encode()
    path.write_bytes(gzip.compress(data) if kind.endswith("gz") else data)
    return path


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "csv.gz", "tsv.gz", "jsonl.gz"])
def test_rows_to_predict(tmp_path, kind):
    rows = list(read_rows(str(written(tmp_path, kind)), "text"))
    assert rows == [{"text": cell, "label": "1"} for cell in CELLS]


@pytest.mark.parametrize("kind", ["csv", "tsv.gz", "jsonl", "jsonl.gz", "txt", "txt.gz"])
def test_texts_of_a_command(tmp_path, kind):
    if "txt" not in kind:
        path = written(tmp_path, kind)
    else:
        path = tmp_path / f"t[1].{kind}"
        data = b"\xef\xbb\xbf" + "".join(f"{cell}\r\n" for cell in CELLS).encode()
        path.write_bytes(gzip.compress(data) if kind.endswith("gz") else data)
    assert read_texts(path) == CELLS


@pytest.mark.parametrize("read", [lambda path: list(read_rows(str(path), "text")), read_texts])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "a"}\n{"text": "café"}\n'.encode("latin-1"), r"is not UTF-8 text \(line 2\)"),
        (b'{"text": "a"}\n[1]\n', "line 2: expected an object"),
        (b'{"text": ', "line 1 is not JSON"),
        (b"[" * 100_000, "line 1"),
    ],
)
def test_one_sentence(tmp_path, read, content, message):
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read(tmp_path / "a.jsonl")


@pytest.mark.parametrize("row", [{"text": 5}, {"prompt": None}, {"words": "a"}])
def test_a_row_without_text_is_no_text(tmp_path, row):
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    with pytest.raises(UserError, match="line 1: expected a text in 'text' or 'prompt'"):
        read_texts(tmp_path / "a.jsonl")


def test_a_list_of_objects_gives_texts(tmp_path):
    (tmp_path / "a.json").write_text('[{"prompt": "one", "answer": "1"},\n {"text": "two"}]')
    assert read_examples(tmp_path / "a.json", columns=("answer",)) == [("one", "1"), "two"]


def test_a_table_without_text_is_no_text(tmp_path):
    (tmp_path / "a.csv").write_text("words,label\na,1\n")
    with pytest.raises(UserError, match="row 1: expected a text in 'text' or 'prompt'"):
        read_texts(tmp_path / "a.csv")


def test_a_short_row_is_told(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\na,1\nb\n")
    with pytest.raises(UserError, match="line 3 has 1 cells, expected 2"):
        list(read_rows(str(tmp_path / "a.csv"), "text"))


def test_standard_input_of_another_encoding(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), encoding="utf-8"))
    with pytest.raises(UserError, match="standard input is not UTF-8"):
        list(read_rows("-", "text"))


@pytest.mark.parametrize(
    ("rows", "answers"),
    [
        ([{"text": "a", "label": 10}, {"text": "b", "label": 9}], ["10", "9"]),
        ([{"text": "a", "label": "007"}, {"text": "b", "label": "7"}], ["007", "7"]),
        ([{"text": "a", "label": True}, {"text": "b", "label": False}], ["true", "false"]),
        ([{"text": "a", "choices": ["x", "y"], "answer": 1}], ["y"]),
        ([{"text": "a", "choices": ["x", "y"], "answer": "x"}], ["x"]),
        ([{"text": "a", "choices": [3, 5], "answer": 5}], ["5"]),
    ],
)
def test_answers_of_questions(rows, answers):
    found = read_questions(rows)
    assert [question.candidates[question.answer] for question in found] == answers


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "a", "label": None}, {"text": "b", "label": 1}], "row 0 of .* has no label"),
        ([{"text": "a", "label": [1]}], r"row 0 of .* has the label '\[1\]'"),
        ([{"text": "a", "label": 1}, {"text": "b", "label": "x"}], "are mixed"),
        ([{"text": None, "label": 1}], "row 0 of .* has None in column 'text'"),
        ([{"text": "a", "choices": "xy", "answer": "x"}], "expected a list of texts"),
        ([{"text": "a", "choices": ["x", {}], "answer": "x"}], "expected a list of texts"),
        ([{"text": "a", "choices": ["x", "y"], "answer": 2}], "none of its choices"),
    ],
)
def test_questions_in_one_sentence(rows, message):
    with pytest.raises(UserError, match=message):
        read_questions(rows)


@pytest.mark.parametrize(
    ("name", "mark"), [("rows.csv", ";"), ("rows.csv", "\t"), ("rows.csv", "|"), ("rows.tsv", ",")]
)
def test_another_separator_is_named(tmp_path, name, mark):
    (tmp_path / name).write_text(f"text{mark}label\na{mark}b\n")
    with pytest.raises(UserError, match=r"one column, .*: are its cells separated by"):
        list(separated_rows(tmp_path / name))
    assert list(separated_rows(tmp_path / name, ["text"]))[1:] == [[f"text{mark}label"], [f"a{mark}b"]]
