"""A run to export, and a Hub of our own to push to."""

import json

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import _http

from moe_adapt.cli import main
from tests.hub.stand_in import Hub
from tests.training.tiny import tiny_bert


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with Hub() as hub:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(
            constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(_http.time, "sleep", lambda seconds: None)
        monkeypatch.setenv("HF_TOKEN", Hub.token)
        yield hub


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    backbone = tiny_bert(folder / "mini-bert")
    data = folder / "greetings" / "train.jsonl"
    data.parent.mkdir()
    rows = [{"text": f"{word} number {i}", "label": word} for i in range(10) for word in ("hello", "goodbye")]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["fit", "--model=SequenceClassifier", f"--model.backbone={backbone}", "--model.pooling=mean"]
    words += [
        "--model.tuner.method=top_k",
        "--model.tuner.num_experts=3",
        "--model.tuner.r=2",
        "--model.lr=0.01",
    ]
    words += ["--model.tuner.target_modules=ffn", "--data=TextClassificationData", f"--data.train={data}"]
    words += ["--data.validation_fraction=0.2", "--trainer.max_epochs=2", "--trainer.accelerator=cpu"]
    words += [f"--out={folder / 'run'}", "--seed_everything=7"]
    assert main(words) == 0
    return folder / "run"
