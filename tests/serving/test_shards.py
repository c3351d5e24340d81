"""A large file in shards: cut at rows, answered as in one go, taken up again, on Ray too."""

import importlib.util
import json
from pathlib import Path

import pytest

from moe_adapt.errors import UserError
from moe_adapt.serving import open_model
from moe_adapt.serving.shards import Job, _rows, answer_shard, finish, prepare
from moe_adapt.serving.workers import run_here, run_on_ray
from tests.cli.conftest import moe_adapt as command  # noqa: F401  a fixture
from tests.serving.models import classifier


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return classifier(tmp_path_factory.mktemp("sharded") / "c0")


def rows_of(count: int) -> list[dict]:
    texts = ["a red thing", "blue, and\nmore blue", 'she said "cold"', "é " * 9, "x"]
    return [{"text": f"{texts[i % 5]} {i}", "label": ["cold", "warm", ""][i % 3]} for i in range(count)]


def write_csv(path: Path, rows: list[dict], end: str) -> None:
    quoted = [[cell.replace('"', '""') for cell in row.values()] for row in rows]
    lines = ["text,label", *(f'"{text}","{label}"' for text, label in quoted)]
    path.write_bytes(("\ufeff" + end.join(lines) + end).encode())


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "crlf.csv"])
@pytest.mark.parametrize("size", [1, 4, 23, 100])
def test_shards_hold_every_row_once_and_in_order(tmp_path, suffix, size):
    path, rows = tmp_path / f"rows.{suffix}", rows_of(23)
    if suffix == "jsonl":
        path.write_text("\n\n".join(json.dumps(row) for row in rows) + "\n")
    else:
        write_csv(path, rows, "\r\n" if "crlf" in suffix else "\n")
    job, shards = prepare(Job("m", str(path), str(tmp_path / "out.jsonl"), shard_rows=size), False)
    parts = [list(_rows(job, shard)) for shard in shards]
    assert [row for part in parts for row in part] == rows
    assert [len(part) for part in parts[:-1]] == [size] * (len(shards) - 1)
    assert [shard.row for shard in shards] == list(range(0, 23, size))


def test_answers_are_those_of_one_process(command, tmp_path, model):  # noqa: F811
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows_of(37)))
    words = ["predict", model, path, "--base", model.parent / "bert", "--batch_size", 4, "--top", 2]
    whole = command(*words, "--to", "whole.jsonl")
    sharded = command(*words, "--to", "parts.jsonl", "--workers", 1, "--shard_rows", 6)
    assert whole.code == sharded.code == 0, sharded.err
    assert Path("whole.jsonl").read_bytes() == Path("parts.jsonl").read_bytes()
    assert whole.err.splitlines()[-1] == sharded.err.splitlines()[-1]  # the scores
    assert "shard 5 of 5" in sharded.err  # 6 rows of a shard become two batches of 4
    assert not Path("parts.jsonl.parts").exists()
    assert "exists already" in command(*words, "--to", "parts.jsonl", "--workers", 1).err


def test_a_killed_run_goes_on_with_what_is_missing(tmp_path, model):
    path = tmp_path / "rows.csv"
    write_csv(path, rows_of(20), "\n")
    bert = str(model.parent / "bert")
    job = Job(str(model), str(path), str(tmp_path / "out.csv"), bert, batch_size=4, shard_rows=4)
    made, shards = prepare(job, False)
    opened = open_model(model, bert)
    for shard in shards[:3]:
        answer_shard(opened, made, shard)
    kept = {p.name: p.stat().st_mtime_ns for p in job.folder.glob("*.jsonl")}

    again, missing = prepare(job, False)
    assert [shard.number for shard in missing] == [3, 4]
    with pytest.raises(UserError, match="another command"):
        prepare(Job(**{**vars(job), "top": 3}), False)
    run_here(again, missing)
    assert {p.name: p.stat().st_mtime_ns for p in job.folder.glob("*.jsonl")}.items() >= kept.items()
    number, scores, _ = finish(again)
    assert number == 20 and "labelled rows" in str(scores)
    assert len(Path(job.to).read_text(encoding="utf-8").splitlines()) == 21 + 4  # four texts have two lines

    path.write_text(path.read_text() + '"one more","cold"\n')
    assert len(prepare(Job(**{**vars(job), "to": str(tmp_path / "more.csv")}), False)[1]) == 6


def test_a_bad_row_is_named_and_nothing_is_written(tmp_path, model):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n{"text": "b"}\n{"txt": "c"}\n')
    bert = str(model.parent / "bert")
    job = Job(str(model), str(path), str(tmp_path / "out.jsonl"), bert, batch_size=1, shard_rows=2)
    with pytest.raises(UserError, match="row 2 has no text in column 'text'"):
        run_here(*prepare(job, False))
    assert not Path(job.to).exists()
    assert [p.name for p in sorted(job.folder.glob("*.jsonl"))] == ["000000.jsonl"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["rows.jsonl", "--workers", 1], "needs a file of rows, and --to"),
        (["-", "--to", "o.jsonl", "--workers", 1], "needs a file of rows"),
        (["rows.parquet", "--to", "o.jsonl", "--workers", 1], "takes JSONL, CSV or TSV"),
        (["no.csv", "--to", "o.jsonl", "--workers", 1], "there is no file"),
        (["empty.csv", "--to", "o.jsonl", "--workers", 1], "has no rows"),
        (["rows.jsonl", "--to", "o.txt", "--workers", 1], "ends in .jsonl or .csv"),
    ],
)
def test_mistakes_are_one_sentence(command, words, said):  # noqa: F811
    Path("empty.csv").write_text("text\n")
    Path("rows.jsonl").write_text('{"text": "a"}\n')
    done = command("predict", "model", *words)
    assert done.code == 2 and said in done.err


def test_without_ray_the_extra_is_named(command, monkeypatch):  # noqa: F811
    found = importlib.util.find_spec
    monkeypatch.setattr("moe_adapt.extras.find_spec", lambda name: None if name == "ray" else found(name))
    done = command("predict", "model", "rows.jsonl", "--to", "o.jsonl", "--workers", 2)
    assert done.code == 2 and "pip install 'moe-adapt[sweep]'" in done.err


@pytest.mark.slow
def test_workers_on_ray_give_the_same_file(tmp_path, model, monkeypatch):
    pytest.importorskip("ray", reason="needs Ray (extra 'sweep')")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    path, bert = tmp_path / "rows.csv", str(model.parent / "bert")
    write_csv(path, rows_of(60), "\n")
    job = Job(str(model), str(path), str(tmp_path / "ray.jsonl"), bert, batch_size=4, shard_rows=8)
    alone = Job(**{**vars(job), "to": str(tmp_path / "alone.jsonl")})
    made, shards = prepare(job, False)
    run_on_ray(made, shards, workers=2)
    finish(made)
    made, shards = prepare(alone, False)
    run_here(made, shards)
    finish(made)
    assert Path(job.to).read_bytes() == Path(alone.to).read_bytes()

    path.write_text('text,label\n"a","cold"\n')
    with pytest.raises(UserError, match="there is no run or adapter"):
        run_on_ray(*prepare(Job(**{**vars(job), "source": "nothing"}), True), workers=2)
