"""Every method from its packaged YAML: `moe-adapt fit` on a tiny model, idle experts, reloading."""

import re

import peft
import pytest
import torch

from moe_adapt.runs.config_names import packaged_configs
from moe_adapt.runs.rebuild import load_module
from moe_adapt.training.modules import CausalLM
from moe_adapt.tuner.model import adapted_layers
from tests.markdown import write_rows
from tests.training.tiny import tiny_llama
from tests.tuner.tiny import randomize

FAST = ("lora_mixer", "dynmole", "condenser", "hydralora")
METHODS = [
    name.removeprefix("routed_lora/") for name in packaged_configs() if name.startswith("routed_lora/")
]


def zero_at_first(layer):
    """What each expert of a layer has that is zero until it is trained."""
    for name in ("moe_adapt_bank__beta", "moe_adapt_bank__core"):
        if hasattr(layer, name):
            return getattr(layer, name)["default"].unbind(0)
    return layer.factors("default")[1].unbind(1)


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=[] if name in FAST else pytest.mark.slow) for name in METHODS]
)
def test_a_method_trains_from_its_yaml_and_reloads_under_another_name(method, moe_adapt, tmp_path):
    tiny_llama(tmp_path / "base")
    colours = ("red", "green", "blue", "pink")
    rows = [
        {"question": f"a {colours[i % 4]} thing", "reply": colours[i % 4], "task": i % 3} for i in range(16)
    ]
    write_rows(tmp_path / "train.jsonl", rows)
    configs = [
        word for name in ("base", "task/causal_lm", f"routed_lora/{method}") for word in ("--config", name)
    ]
    result = moe_adapt(
        "fit",
        *configs,
        "--out=run",
        "--model.backbone=base",
        "--data.train=train.jsonl",
        "--data.prompt={question}",
        "--data.response= {reply}",
        "--data.domain_column=task",
        "--data.batch_size=4",
        "--trainer.max_steps=4",
        "--trainer.limit_val_batches=0",
        "--trainer.accelerator=cpu",
    )
    assert result.code == 0, result.err
    module = load_module("run", "last")
    assert isinstance(module, CausalLM)
    banks = {id(layer.pool("default") or layer): layer for layer in adapted_layers(module.model)}
    moved = [bool(own.any()) for layer in banks.values() for own in zero_at_first(layer)]
    trained, total = map(int, re.search(r"experts trained: (\d+) of (\d+)", result.out).groups())
    assert (trained, total) == (sum(moved), len(moved)) and trained > 0
    assert ("never used" in result.out) == (trained < total)

    randomize(module.model)
    batch = {"input_ids": torch.tensor([[5, 9, 7, 3], [8, 6, 4, 11]])}
    expected = module.model(**batch).logits
    module.model.save_pretrained(tmp_path / "adapter")
    loaded = peft.PeftModel.from_pretrained(
        CausalLM.base_model("base"), tmp_path / "adapter", adapter_name="other"
    )
    assert torch.equal(loaded.eval()(**batch).logits, expected)
