"""Saving and loading, always with random weights: a reload that fell back to initial values would show."""

import json

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForQuestionAnswering, BertForTokenClassification

from moe_adapt.errors import UserError
from moe_adapt.tuner import RoutedLoraConfig
from tests.tuner.tiny import PROJECTIONS, adapted, batch, llama, randomize


def logits(model):
    return model.eval()(**batch()).logits


@pytest.fixture
def saved(tmp_path):
    model = adapted(num_experts=[3, 4])
    model.save_pretrained(tmp_path)
    return tmp_path, logits(model)


@pytest.mark.parametrize("adapter", ["default", "another"])
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_reloads_under_any_name(saved, adapter, low_cpu_mem_usage):
    folder, expected = saved
    model = peft.PeftModel.from_pretrained(
        llama(), folder, adapter_name=adapter, low_cpu_mem_usage=low_cpu_mem_usage
    )
    assert torch.equal(logits(model), expected)


def test_transformers_loads_it(saved):
    folder, expected = saved
    base = llama()
    base.load_adapter(str(folder), adapter_name="third")
    assert torch.equal(logits(base), expected)


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_a_half_precision_base_does_not_round_the_adapter(tmp_path, low_cpu_mem_usage):
    model = adapted(base=llama(torch.bfloat16))
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(
        llama(torch.bfloat16), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage
    )
    tensors = {name: value for name, value in model.state_dict().items() if "moe_adapt_" in name}
    for name, value in loaded.state_dict().items():
        if "moe_adapt_" in name:
            assert value.dtype == torch.float32
            assert torch.equal(value, tensors[name])
    assert torch.equal(logits(loaded), logits(model))


def test_the_file_holds_flat_names_and_resolved_sites(saved):
    folder, _ = saved
    tensors = load_file(folder / "adapter_model.safetensors")
    assert tensors["base_model.model.model.layers.0.mlp.gate_proj.moe_adapt_A"].shape == (3, 4, 32)
    assert tensors["base_model.model.model.layers.1.mlp.gate_proj.moe_adapt_B"].shape == (48, 4, 4)
    router = "base_model.model.model.layers.1.self_attn.q_proj.moe_adapt_router__scorer__weight"
    assert tensors[router].shape == (4, 32)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["peft_type"] == "ROUTED_LORA"
    assert config["format_version"] == 1
    assert config["sites"]["model.layers.0.mlp.down_proj"]["num_experts"] == 3


def test_two_adapters_are_saved_apart_and_switch(tmp_path):
    model = adapted()
    model.add_adapter("second", RoutedLoraConfig(method="top_k", r=2, target_modules=["q_proj", "up_proj"]))
    randomize(model, seed=5)
    outputs = {}
    for name in ("default", "second"):
        model.set_adapter(name)
        outputs[name] = logits(model)
    assert not torch.equal(outputs["default"], outputs["second"])
    model.save_pretrained(tmp_path)
    second = peft.PeftModel.from_pretrained(llama(), tmp_path / "second", adapter_name="x")
    assert torch.equal(logits(second), outputs["second"])
    second.load_adapter(tmp_path, adapter_name="y")
    second.set_adapter("y")
    assert torch.equal(logits(second), outputs["default"])
    second.delete_adapter("y")
    second.set_adapter("x")
    assert torch.equal(logits(second), outputs["second"])


def test_a_missing_tensor_is_an_error(saved):
    folder, _ = saved
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors.pop("base_model.model.model.layers.0.mlp.gate_proj.moe_adapt_A")
    save_file(tensors, path)
    with pytest.raises(UserError, match="lacks 1 of the"):
        peft.PeftModel.from_pretrained(llama(), folder)


def test_a_foreign_tensor_is_an_error(saved):
    folder, _ = saved
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors["base_model.model.model.layers.7.mlp.gate_proj.moe_adapt_A"] = torch.zeros(1)
    save_file(tensors, path)
    with pytest.raises(UserError, match="fit no layer"):
        peft.PeftModel.from_pretrained(llama(), folder)


def test_a_newer_format_is_refused(saved):
    folder, _ = saved
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"format_version": 99}))
    with pytest.raises(UserError, match="file format 99"):
        peft.PeftModel.from_pretrained(llama(), folder)


@pytest.mark.parametrize("name", ["0", "a.b", "layers", "q_proj"])
def test_adapter_names_that_collide_when_saved_are_refused(name):
    with pytest.raises(UserError, match="would collide"):
        peft.get_peft_model(llama(), RoutedLoraConfig(target_modules=PROJECTIONS), adapter_name=name)


def test_one_configuration_serves_several_adapters_that_do_not_meet():
    config = RoutedLoraConfig(method="dynmole", num_experts=3)
    first = peft.get_peft_model(llama(), config)
    assert first.peft_config["default"] is config
    first.base_model.freeze_experts([0])
    second = peft.get_peft_model(llama(layers=3), config)
    second.add_adapter("more", config)
    for adapter in ("default", "more"):
        taken = second.peft_config[adapter]
        assert len(taken.sites) == 9 and {site["frozen"] for site in taken.sites.values()} == {0}
    second.base_model.freeze_experts([1], "more")
    assert {site["frozen"] for site in second.peft_config["default"].sites.values()} == {0}
    assert {site["frozen"] for site in config.sites.values()} == {1}


@pytest.mark.parametrize(
    "task, auto, head",
    [
        ("TOKEN_CLS", BertForTokenClassification, "classifier"),
        ("QUESTION_ANS", BertForQuestionAnswering, "qa_outputs"),
    ],
)
def test_the_head_of_a_task_is_trained_and_saved(tmp_path, task, auto, head):
    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    base = auto(BertConfig(vocab_size=32, **size))
    model = peft.get_peft_model(base, RoutedLoraConfig(task_type=task, r=2))
    assert any(head in name and p.requires_grad for name, p in model.named_parameters())
    model.save_pretrained(tmp_path)
    assert any(head in name for name in load_file(tmp_path / "adapter_model.safetensors"))


def test_grown_and_partly_frozen_banks_come_back(tmp_path):
    model = adapted(num_experts=5)
    expected = logits(model)
    model.base_model.freeze_experts([3, 0])
    torch.testing.assert_close(logits(model), expected)
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(llama(), tmp_path, adapter_name="other", is_trainable=True)
    assert torch.equal(logits(loaded), logits(model))
    site = loaded.base_model.model.model.layers[0].mlp.gate_proj
    assert site.specs["other"].frozen == 2
    assert site.specs["other"].order == [0, 3, 1, 2, 4]
    assert site.moe_adapt_A["other"].shape[0] == 3
