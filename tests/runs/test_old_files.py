"""Files that version 0.1 wrote before its modules moved: they open, answer as then, and are exported."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from moe_adapt.checks import ToyEncoder, gaussian_stream
from moe_adapt.cli import main
from moe_adapt.drift.driftmoe import DriftMoEClassifier
from moe_adapt.hub.load import load_adapter
from moe_adapt.learners import FineTuning
from moe_adapt.runs.rebuild import load_module
from moe_adapt.training.modules import SequenceClassifier
from moe_adapt.training.stream import StreamRunner
from tests.training.tiny import tiny_bert

FILES = Path(__file__).parents[1] / "fixtures" / "files_of_0_1"
EXPECTED = json.loads((FILES / "expected.json").read_text())


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_bert(tmp_path / "mini-bert")
    shutil.copytree(FILES, tmp_path, dirs_exist_ok=True)
    rows = [{"text": f"{word} number {i}", "label": word} for i in range(10) for word in ("hello", "goodbye")]
    Path("train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def logits(model):
    tokenizer = AutoTokenizer.from_pretrained("mini-bert")
    texts = ["hello number 3", "goodbye number 12"]
    with torch.no_grad():
        found = model.eval()(**tokenizer(texts, padding=True, return_tensors="pt"))
    return getattr(found, "logits", found)


def test_a_run(place):
    torch.testing.assert_close(logits(load_module("run").model), torch.tensor(EXPECTED["logits"]))


def test_a_run_goes_on_and_is_exported(place, capsys):
    Path("run/checkpoints/last.ckpt").write_bytes(Path("run/checkpoints/best.ckpt").read_bytes())
    words = ["fit", "--config", "run/moe_adapt_config.yaml", "--resume", "--trainer.max_epochs", "2"]
    assert main(words) == 0, capsys.readouterr().err
    assert main(["export", "run", "--to", "again"]) == 0, capsys.readouterr().err


def test_an_adapter(place):
    base = SequenceClassifier.base_model(backbone="mini-bert", num_classes=2, pooling="mean")
    torch.testing.assert_close(logits(load_adapter(base, "adapter")), torch.tensor(EXPECTED["logits"]))


def test_a_learner(place):
    learner = FineTuning.from_pretrained("learner", backbone=ToyEncoder())
    total = sum(tensor.double().sum() for tensor in learner.learner_state().values())
    assert total.item() == pytest.approx(EXPECTED["learner_sum"])
    assert len(learner.history) == 2


def test_a_stream_run_is_resumed(place):
    learner, stream = FineTuning(ToyEncoder()), gaussian_stream(tasks=2, train=6, test=4)
    found = StreamRunner(place / "stream").run(learner, stream, resume=True)
    assert found.metrics()["final_accuracy"] == 0.6875
    assert len(found.tasks) == len(learner.history) == 2


def test_a_driftmoe(place):
    model = DriftMoEClassifier.from_pretrained("driftmoe")
    found = {str(label): p for label, p in model.predict_proba_one(EXPECTED["driftmoe_row"]).items()}
    assert found == pytest.approx(EXPECTED["driftmoe"])
    model.learn_one(EXPECTED["driftmoe_row"], next(iter(found)))
