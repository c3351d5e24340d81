"""A stock export means the same to every program: PEFT, vLLM and converters to GGUF have different rules."""

import json

import pytest
import torch
from huggingface_hub import ModelCard
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor

from moe_adapt.hub.export import export_experts, export_merged
from moe_adapt.tuner.model import adapted_layers
from tests.hub.test_forms import BATCHES
from tests.hub.tiny import build_base, build_model


def pairs(folder) -> dict[str, tuple[Tensor, Tensor]]:
    tensors = load_file(folder / "adapter_model.safetensors")
    names = {name.rsplit(".lora_", 1)[0] for name in tensors if ".lora_" in name}
    return {n: (tensors[f"{n}.lora_A.weight"], tensors[f"{n}.lora_B.weight"]) for n in names}


def as_vllm(folder) -> dict[str, Tensor]:
    """One `lora_alpha / r` for all modules, rank `r` at most, patterns unknown."""
    config = json.loads((folder / "adapter_config.json").read_text())
    factors = pairs(folder)
    assert all(len(a) <= config["r"] for a, _ in factors.values())
    return {name: (b @ a) * (config["lora_alpha"] / config["r"]) for name, (a, b) in factors.items()}


def as_llama_cpp(folder) -> dict[str, Tensor]:
    """`lora_alpha` for all modules, divided by the rank of each tensor."""
    alpha = json.loads((folder / "adapter_config.json").read_text())["lora_alpha"]
    return {name: (b @ a) * (alpha / len(a)) for name, (a, b) in pairs(folder).items()}


def as_peft(folder) -> dict[str, Tensor]:
    model = PeftModel.from_pretrained(build_base(), folder)
    layers = {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}
    return {name: layer.get_delta_weight("default") for name, layer in layers.items()}


def mixed(**options):
    """Layers of different ranks, scales and numbers of experts."""
    return build_model(
        method="top_k",
        num_experts={r"\.0\.": 3, "default": 2},
        r={r"q_proj": 4, "default": 2},
        alpha={r"\.1\.": 3.0, "default": 16.0},
        **options,
    )


@pytest.mark.parametrize("reader", [as_vllm, as_llama_cpp, as_peft])
@pytest.mark.parametrize("max_rank", [None, 3])
def test_a_merged_export_is_read_alike(tmp_path, reader, max_rank):
    model = mixed()
    export_merged(model, tmp_path / "merged", calibration=BATCHES, max_rank=max_rank)
    record = json.loads((tmp_path / "merged" / "export.json").read_text())
    found = reader(tmp_path / "merged")
    for layer in adapted_layers(model):
        bank = layer.bank("default")
        gates = torch.tensor(record["mean_gates"][layer.site])
        exact = sum(gate * bank.delta_weight(expert) for expert, gate in enumerate(gates))
        error = (found[f"base_model.model.{layer.site}"] - exact).norm() / exact.norm()
        assert error < record["errors"][layer.site] + 1e-5, layer.site


@pytest.mark.parametrize("reader", [as_vllm, as_llama_cpp, as_peft])
def test_exported_experts_are_read_alike(tmp_path, reader):
    model = mixed()
    export_experts(model, tmp_path / "experts")
    for expert in range(2):
        found = reader(tmp_path / "experts" / "experts" / str(expert))
        for layer in adapted_layers(model):
            exact = layer.bank("default").delta_weight(expert)
            torch.testing.assert_close(found[f"base_model.model.{layer.site}"], exact, rtol=1e-5, atol=1e-6)


def test_no_patterns_and_the_rank_that_servers_need(tmp_path):
    report = export_merged(mixed(), tmp_path / "merged", calibration=BATCHES)
    config = json.loads((tmp_path / "merged" / "adapter_config.json").read_text())
    assert not config["rank_pattern"] and not config["alpha_pattern"]
    assert config["r"] == config["lora_alpha"] == report.record["rank"] == 12
    assert report.record["max_lora_rank"] == 16
    wide = export_merged(
        build_model(method="uniform_dense", num_experts=5, r=4), tmp_path / "wide", overwrite=True
    )
    assert "vLLM needs --max-lora-rank 32" in str(wide)


def test_every_expert_has_a_card_and_the_root_claims_no_adapter(tmp_path):
    export_experts(mixed(), tmp_path / "pool")
    root = ModelCard.load(tmp_path / "pool" / "README.md")
    assert root.data.library_name is None
    assert not any(tag.startswith("base_model:adapter") for tag in root.data.tags)
    card = ModelCard.load(tmp_path / "pool" / "experts" / "1" / "README.md")
    assert card.data.library_name == "peft"
    assert "pool, expert 1" in card.text and "PeftModel.from_pretrained" in card.text
