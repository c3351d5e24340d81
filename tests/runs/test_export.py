"""From the command line's run folder to an adapter folder."""

import json
import re
import subprocess
import sys

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from moe_adapt.cli import main
from moe_adapt.errors import UserError
from moe_adapt.hub.load import load_adapter
from moe_adapt.runs.export import export_run
from moe_adapt.runs.rebuild import load_module
from moe_adapt.training.modules import SequenceClassifier

BATCH = {
    "input_ids": torch.arange(6, 26).reshape(2, 10),
    "attention_mask": torch.ones(2, 10, dtype=torch.long),
}


def logits(model):
    with torch.inference_mode():
        return model.eval()(**BATCH)


def test_the_exported_adapter_is_the_run(run, tmp_path):
    report = export_run(run, tmp_path / "adapter")
    trained = load_module(run)
    base = SequenceClassifier.base_model(str(run.parent / "mini-bert"), num_classes=2, pooling="mean")
    assert torch.equal(logits(load_adapter(base, report.folder)), logits(trained.model))
    stored = load_file(report.folder / "adapter_model.safetensors")
    assert any("classifier" in name for name in stored)
    assert report.tensors == len(stored)


def test_the_card_of_a_run(run, tmp_path):
    folder = export_run(run, tmp_path / "adapter", checkpoint="last").folder
    card = ModelCard.load(folder / "README.md")
    assert card.data.pipeline_tag == "text-classification"
    assert "`val/acc`" in card.text
    assert "Measured on greetings/train.jsonl" in card.text
    assert "Seed 7" in card.text
    assert "SequenceClassifier.base_model(backbone='PATH_OF/mini-bert', num_classes=2" in card.text
    assert "base_model" not in card.data.to_dict()
    assert json.loads((folder / "manifest.json").read_text())["seed"] == 7


def test_best_carries_the_metric_it_was_chosen_by(run, tmp_path):
    folder = export_run(run, tmp_path / "adapter").folder
    (result,) = ModelCard.load(folder / "README.md").data.eval_results
    assert result.metric_name == "val/acc"


def test_the_command(run, tmp_path, capsys):
    assert main(["export", str(run), "--to", str(tmp_path / "adapter")]) == 0
    assert "read back and equal" in capsys.readouterr().out
    assert main(["export", str(run), "--to", str(tmp_path / "adapter")]) == 2
    assert "is not empty" in capsys.readouterr().err


def test_a_fresh_process_fails_without_the_import_that_the_card_names_and_agrees_with_it(run, tmp_path):
    folder = export_run(run, tmp_path / "adapter").folder
    code = f"""
import torch
from peft import PeftConfig, PeftModel
try:
    PeftConfig.from_pretrained({str(folder)!r})
except KeyError as error:
    print(error)
import moe_adapt.tuner
from moe_adapt.training.modules import SequenceClassifier
base = SequenceClassifier.base_model({str(run.parent / "mini-bert")!r}, num_classes=2, pooling="mean")
model = PeftModel.from_pretrained(base, {str(folder)!r}).eval()
ids = torch.arange(6, 26).reshape(2, 10)
print(model(input_ids=ids, attention_mask=torch.ones_like(ids)).flatten().tolist())
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    expected = logits(load_module(run).model).flatten().tolist()
    assert result.stdout.splitlines()[0] == "'ROUTED_LORA'"
    assert json.loads(result.stdout.splitlines()[-1]) == pytest.approx(expected, abs=1e-6)


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(UserError, match="not the folder of a run"):
        export_run(tmp_path, tmp_path / "adapter")


def test_the_cards_code_opens_the_other_forms_without_this_package(run, tmp_path, capsys):
    script = "import sys\n"
    for form in ("experts", "merged"):
        assert main(["export", str(run), "--to", str(tmp_path / form), "--form", form]) == 0
        card = (tmp_path / form / "README.md").read_text()
        (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
        code = code.replace("PATH_OF/mini-bert", str(run.parent / "mini-bert"))
        script += code.replace("PATH_OR_ID_OF_THIS_ADAPTER", str(tmp_path / form))
        script += "ids = torch.arange(6, 26).reshape(2, 10)\n"
        script += (
            "print(model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).flatten().tolist())\n"
        )
    script += "assert not any(name.startswith('moe_adapt') for name in sys.modules)\n"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    first_expert, merged = (torch.tensor(json.loads(line)) for line in result.stdout.splitlines()[-2:])
    assert torch.isfinite(first_expert).all()
    routed = logits(load_module(run).model).flatten()
    assert (merged - routed).abs().max() < 0.5  # barely trained: the routers are nearly uniform
    record = json.loads((tmp_path / "merged" / "export.json").read_text())
    assert f"accuracy {record['gap']['accuracy_routed']:.4f} routed" in capsys.readouterr().out
    assert record["calibration"]["data"] == "train"


def test_rows_that_a_run_does_not_have(run, tmp_path, capsys):
    words = ["export", str(run), "--to", str(tmp_path / "merged"), "--form", "merged", "--gap", "test"]
    assert main(words) == 2
    assert "no test rows" in capsys.readouterr().err
    assert main([*words[:-1], "tset"]) == 2
    with pytest.raises(UserError, match="no form 'mergd'"):
        export_run(run, tmp_path / "merged", form="mergd")
    assert list(tmp_path.iterdir()) == []


def test_a_whole_model_of_a_run(run, tmp_path, capsys):
    words = ["export", str(run), "--to", str(tmp_path / "full"), "--form", "full"]
    assert main(words) == 2
    assert "PooledClassifier is no class" in capsys.readouterr().err
    backbone, data = run.parent / "mini-bert", run.parent / "greetings" / "train.jsonl"
    own = ["fit", "--model=SequenceClassifier", f"--model.backbone={backbone}", "--model.pooling=model"]
    own += ["--model.tuner.method=top_k", "--model.tuner.r=2", "--data=TextClassificationData"]
    own += [f"--data.train={data}", "--data.validation_fraction=0.2", "--trainer.max_epochs=1"]
    assert main([*own, "--trainer.accelerator=cpu", f"--out={tmp_path / 'own'}"]) == 0
    words[1] = str(tmp_path / "own")
    assert main([*words, "--max_rank", "4"]) == 2
    assert "max_rank is for --form merged" in capsys.readouterr().err
    assert main(words) == 0
    told = capsys.readouterr().out
    record = json.loads((tmp_path / "full" / "export.json").read_text())
    assert f"accuracy {record['gap']['accuracy_routed']:.4f} routed" in told
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "full")
    assert set(model.config.label2id) == {"hello", "goodbye"}
    assert AutoTokenizer.from_pretrained(tmp_path / "full")("hello")["input_ids"]


def test_the_command_pushes_to_the_hub(run, hub, capsys):
    assert main(["export", str(run), "--to", "hf://me/greetings", "--private"]) == 0
    assert "pushed: http://127.0.0.1" in capsys.readouterr().out
    assert hub.repositories["me/greetings"].private
    base = SequenceClassifier.base_model(str(run.parent / "mini-bert"), num_classes=2, pooling="mean")
    assert torch.equal(logits(load_adapter(base, "me/greetings")), logits(load_module(run).model))
    hub.fail["/commit/"] = 500
    assert main(["export", str(run), "--to", "hf://me/greetings", "--license", "mit"]) == 2
    complaint = capsys.readouterr().err
    assert "can be pushed again" in complaint
    assert len(complaint.splitlines()) == 1
    assert "license: mit" in (run / "export" / "greetings" / "README.md").read_text()
    assert main(["export", str(run), "--to", "here", "--private"]) == 2
