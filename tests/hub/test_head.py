"""A run that trained a head alone is exported and opened; cards say what was measured, and where."""

import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

import moe_adapt
from moe_adapt.cli import main
from moe_adapt.errors import UserError
from moe_adapt.runs.export import dataset_name, export_run
from moe_adapt.serving import open_model
from tests.training.tiny import tiny_bert


@pytest.fixture(scope="module")
def head(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("head")
    bert = tiny_bert(root / "bert")
    rows = [{"text": f"{word} {i}", "label": word} for i in range(8) for word in ("hello", "goodbye")]
    for name in ("train", "test"):
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["fit", "--config", "task/sequence_classification", "--model.backbone", bert]
    words += ["--data.train", root / "train.jsonl", "--data.test", root / "test.jsonl", "--out", root / "run"]
    words += ["--trainer.max_epochs", "1", "--trainer.accelerator", "cpu", "--model.tuner", "null"]
    assert main([str(word) for word in words]) == 0
    return root / "run"


def test_the_exported_head_answers_as_the_run(head, tmp_path):
    report = export_run(head, tmp_path / "head")
    assert report.record["form"] == "head" and report.tensors == 2
    texts = ["hello you", "goodbye", "what"]
    of_run = open_model(head)
    of_export = moe_adapt.pipeline(tmp_path / "head", base=str(head.parent / "bert"))
    assert [answer.row(False) for answer in of_run(texts)] == of_export(texts)
    with pytest.raises(UserError, match="one form"):
        export_run(head, tmp_path / "merged", form="merged")


def test_the_card_ends_in_a_label_and_has_the_test(head, tmp_path):
    config = str(head / "moe_adapt_config.yaml")
    before = export_run(head, tmp_path / "before").folder
    assert "`test/acc`" not in (before / "README.md").read_text()
    assert main(["test", "--config", config]) == 0
    text = ModelCard.load(export_run(head, tmp_path / "after").folder / "README.md").text
    measured = json.loads((head / "test.json").read_text())["metrics"]
    assert f"| `test/acc` | {measured['test/acc']:.4g} |" in text
    assert "# {'prediction': '" in text and "`goodbye`, `hello`" in text
    assert f"Measured on {head.parent.name}/train.jsonl" in text
    other = shutil.copytree(head, tmp_path / "other")
    shutil.copy(other / "checkpoints" / "last.ckpt", other / "checkpoints" / "best.ckpt")
    (other / "test.json").write_text(json.dumps({"sha256": "of another", "metrics": {"test/acc": 1.0}}))
    assert "`test/acc`" not in (export_run(other, tmp_path / "third").folder / "README.md").read_text()


def test_a_head_of_another_size_is_refused(head, tmp_path):
    folder = export_run(head, tmp_path / "head").folder
    answering = json.loads((folder / "answering.json").read_text())
    answering["base"]["num_classes"] = 5
    (folder / "answering.json").write_text(json.dumps(answering))
    with pytest.raises(UserError, match="does not fit"):
        open_model(folder, str(head.parent / "bert"))


def test_data_sets_are_named_as_given_without_paths_of_the_machine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "rows.csv").touch()
    given = {
        "data/rows.csv": "data/rows.csv",
        str(tmp_path / "data" / "rows.csv"): "data/rows.csv",
        "ag_news": "ag_news",
    }
    for source, name in given.items():
        assert dataset_name({"init_args": {"train": source}}) == name
    assert dataset_name({"init_args": {"train": [{"text": "a"}]}}) is None
