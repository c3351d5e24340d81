"""Rows on disk: the batches of rows in memory, streamed sources, and a resumed run with the same batches."""

import csv
import gzip
import json
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch

from moe_adapt.data import disk, streaming
from moe_adapt.data.disk import DiskTable
from moe_adapt.errors import UserError
from moe_adapt.training.datamodules import CausalLMData, TextClassificationData
from moe_adapt.training.modules import CausalLM
from tests.training.runs import routed, trainer
from tests.training.test_resume import Kill
from tests.training.tiny import tiny_bert, tiny_llama

ROWS = [{"prompt": f"ask {'very ' * (i % 4)}{i}", "response": f" say {i}", "note": i} for i in range(23)]
TEMPLATES = {"prompt": "{prompt}", "response": "{response}", "max_length": 48, "batch_size": 3}


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return str(tiny_llama(tmp_path_factory.mktemp("llama"), chat=True))


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return str(tiny_bert(tmp_path_factory.mktemp("bert")))


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(path)


def batches(llama, source, folder, **options):
    data = CausalLMData(llama, train=source, on_disk=folder, **{**TEMPLATES, **options})
    data.setup("fit")
    loaders = (data.train_dataloader(), data.val_dataloader())
    return [batch for loader in loaders for batch in loader], data.first_example()


@pytest.mark.parametrize(
    "options",
    [{}, {"max_train_rows": 7}, {"too_long": "truncate", "max_length": 8}, {"train_on_prompt": True}],
)
def test_batches_are_those_of_rows_in_memory(llama, file, tmp_path, options):
    found, first = batches(llama, file, str(tmp_path / "disk"), **options)
    expected, same = batches(llama, file, None, **options)
    assert first == same and len(found) == len(expected) > 2
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_conversations_alpaca_and_choices(llama, tmp_path):
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    kinds = [
        ([{"messages": turns}] * 4, {}),
        ([{"instruction": "Translate.", "input": "Hund", "output": "dog"}] * 4, {}),
        (
            [{"q": "?", "c": ["a", "b"], "a": 1}] * 4,
            {"prompt": "{q}", "response": None, "choices": "c", "answer": "a"},
        ),
    ]
    for number, (rows, options) in enumerate(kinds):
        path = tmp_path / f"{number}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        found, first = batches(llama, str(path), str(tmp_path / "disk"), **options)
        expected, same = batches(llama, str(path), None, **options)
        assert first == same and all(
            torch.equal(one[key], other[key])
            for one, other in zip(found, expected, strict=True)
            for key in one
        )


def test_a_changed_file_is_read_again_and_an_unchanged_one_is_not(file, tmp_path, monkeypatch):
    DiskTable.of(file, "train", tmp_path / "disk", None)
    with open(file, "a") as rows:
        rows.write('{"prompt": "more"}\n')
    table = DiskTable.of(file, "train", tmp_path / "disk", None)
    assert len(table) == 24 and table[23] == {"prompt": "more", "response": None, "note": None}
    monkeypatch.setattr(disk, "stream_rows", lambda *_: pytest.fail("read again"))
    assert len(DiskTable.of(file, "train", tmp_path / "disk", None)) == 24


def test_other_files_mixtures_and_streams(file, tmp_path, monkeypatch):
    packed, table = tmp_path / "rows.jsonl.gz", tmp_path / "rows.csv"
    packed.write_bytes(gzip.compress(Path(file).read_bytes()))
    with table.open("w", newline="") as target:
        writer = csv.DictWriter(target, ["prompt", "response"])
        writer.writeheader()
        writer.writerows({"prompt": 'a "quoted",\ncell', "response": "007"} for _ in range(2))
    folder = tmp_path / "disk"
    assert DiskTable.of(str(packed), "train", folder, None)[5] == ROWS[5]
    assert DiskTable.of(str(table), "train", folder, None)[1] == {
        "prompt": 'a "quoted",\ncell',
        "response": "007",
    }
    mixture = [{"file": file, "weight": 2}, {"file": str(table), "weight": 0.5}]
    mixed = DiskTable.of(mixture, "train", folder, None)
    assert len(mixed) == 47 and mixed[46]["response"] == "007" and mixed[23] == mixed[0]
    asked = []

    def load_dataset(name, configuration, split, streaming):
        asked.append((name, configuration, split, streaming))
        return iter(ROWS)

    monkeypatch.setattr(streaming, "load_dataset", load_dataset)
    assert len(DiskTable.of("someone/rows:small@part", "train", folder, None)) == 23
    assert asked == [("someone/rows", "small", "part", True)]


def test_parquet_and_subsets(tmp_path):
    datasets.Dataset.from_list(ROWS).to_parquet(str(tmp_path / "rows.parquet"))
    table = DiskTable.of(str(tmp_path / "rows.parquet"), "train", tmp_path / "disk", None)
    assert table[3] == ROWS[3] and table.lengths[3] == len(json.dumps(ROWS[3]))
    assert table.subset(np.array([4, 2])).subset(np.array([1]))[0] == ROWS[2]


def test_texts_with_labels_are_those_in_memory(bert, tmp_path):
    rows = [
        {
            "text": "very " * (i % 5) + f"text {i}",
            "label": ["b", "a", "c"][i % 3],
            "who": f"w{i % 2}",
            "note": i,
        }
        for i in range(40)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"domain_column": "who", "group_by_length": True, "batch_size": 4, "max_train_rows": 30}
    found = []
    for folder in (str(tmp_path / "disk"), None):
        data = TextClassificationData(bert, train=str(path), test=str(path), on_disk=folder, **settings)
        data.setup("test")
        loaders = (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())
        batches = [batch for loader in loaders for batch in loader]
        found.append((data.first_example(), data.class_names, data.notes, batches))
    assert found[0][:3] == found[1][:3] and len(found[0][3]) == len(found[1][3]) > 10
    for one, other in zip(found[0][3], found[1][3], strict=True):
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": 5, "label": "a"}, "row 2 of .* has 5 in column 'text': expected a text"),
        ({"text": "x", "label": None}, "row 2 of .* has no label"),
        ({"text": "x"}, "row 2 of .* has no label"),
    ],
)
def test_bad_texts_on_disk_are_told(bert, tmp_path, row, message):
    path = tmp_path / "rows.jsonl"
    rows = [{"text": "x", "label": "a"}, {"text": "y", "label": "b"}, row]
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    with pytest.raises(UserError, match=message):
        TextClassificationData(bert, train=str(path), on_disk=str(tmp_path / "disk")).setup("fit")


def test_mistakes(llama, tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"a": 1}\n[]\n')
    with pytest.raises(UserError, match="line 2: expected an object"):
        DiskTable.of(str(bad), "train", tmp_path / "disk", None)
    assert not list((tmp_path / "disk").glob("*.arrow"))
    with pytest.raises(UserError, match="on_disk and too_long 'drop' exclude each other"):
        CausalLMData(llama, train="x.jsonl", on_disk="disk", **TEMPLATES, too_long="drop")


def test_a_resumed_run_ends_as_an_uninterrupted_one(llama, file, tmp_path):
    def run(folder, kill=None, resume=False):
        from moe_adapt.training.callbacks import LastCheckpoint

        torch.manual_seed(5)
        module = CausalLM(llama, tuner=routed(dropout=0.1), lr=1e-2)
        data = CausalLMData(llama, train=file, on_disk=str(tmp_path / "disk"), **TEMPLATES)
        callbacks = [LastCheckpoint(every_n_train_steps=2)] + ([] if kill is None else [Kill(kill)])
        runner = trainer(folder, callbacks=callbacks)
        start = str(folder / "checkpoints" / "last.ckpt") if resume else None
        if kill is None:
            runner.fit(module, data, ckpt_path=start)
        else:
            with pytest.raises(RuntimeError, match="killed"):
                runner.fit(module, data)
        return {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}

    whole = run(tmp_path / "whole")
    run(tmp_path / "parts", kill=5)
    resumed = run(tmp_path / "parts", resume=True)
    assert all(torch.equal(whole[name], value) for name, value in resumed.items())
