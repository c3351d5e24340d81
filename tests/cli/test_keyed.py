"""``fit --key``: an expert per value of a column and a shared one, by id in training and at test."""

import json

import pytest
import torch

from moe_adapt.cli import main
from moe_adapt.cli.keyed import split_key
from moe_adapt.errors import UserError
from moe_adapt.runs.rebuild import load_module
from tests.training.tiny import tiny_bert


def test_words():
    assert split_key(["--out=x", "--key=a", "--key_shared", "false"]) == ("a", False, ["--out=x"])
    for words in (["--key"], ["--key", "--out"], ["--key_shared=false"], ["--key=a", "--key_shared=maybe"]):
        with pytest.raises(UserError):
            split_key(words)


def test_one_expert_per_customer_and_a_shared_one(tmp_path):
    backbone = tiny_bert(tmp_path / "bert")
    rows = [
        {"text": f"row number {i}", "label": ("yes", "no")[(i + t) % 2], "tenant": "abc"[t]}
        for i in range(6)
        for t in range(3)
    ]
    data = tmp_path / "train.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["fit", "--model=SequenceClassifier", f"--model.backbone={backbone}", "--model.pooling=mean"]
    words += ["--key", "tenant", "--model.tuner.r=2", "--model.tuner.target_modules=ffn"]
    words += ["--data=TextClassificationData", f"--data.train={data}", "--trainer.max_epochs=1"]
    words += ["--trainer.accelerator=cpu", f"--out={tmp_path / 'run'}", "--data.validation_fraction=0.2"]
    assert main(words) == 0
    module = load_module(tmp_path / "run", "last")
    tuner = module.tuner
    assert {spec["num_experts"] for spec in tuner.peft_config["default"].sites.values()} == {4}
    module.eval()
    ids = torch.tensor([[5, 6, 7], [5, 6, 7]])
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.inference_mode(), tuner.record():
        module.model(**batch, domain_ids=torch.tensor([1, -1]))
        gates = next(iter(tuner.hooks.session.context.records.values())).gates
    assert gates[0].tolist() == [0, 1, 0, 1] and gates[-1].tolist() == [0, 0, 0, 1]
