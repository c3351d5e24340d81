"""A tiny Llama and the adapters that tests put on it."""

from typing import Any

import peft
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from moe_adapt.tuner import RoutedLoraConfig

PROJECTIONS = ["q_proj", "v_proj", "gate_proj", "down_proj"]


def llama(dtype: torch.dtype = torch.float32, layers: int = 2) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).to(dtype)


def adapted(method: str = "dynmole", base: nn.Module | None = None, **options: Any) -> peft.PeftModel:
    """Return a tiny Llama with a routed adapter whose every tensor is random."""
    settings: dict[str, Any] = {"r": 4, "alpha": 8, "dropout": 0.0, "target_modules": PROJECTIONS} | options
    model = peft.get_peft_model(
        llama() if base is None else base, RoutedLoraConfig(method=method, task_type="CAUSAL_LM", **settings)
    )
    randomize(model)
    return model


def randomize(model: nn.Module, seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if "moe_adapt_" in name:
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.2)


def batch(rows: int = 2, length: int = 7, left_padding: int = 3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(1, 64, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, :left_padding] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


def adapter_gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and parameter.grad is not None
    }
