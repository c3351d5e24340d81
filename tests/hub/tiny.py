"""A tiny Llama with a routed adapter whose weights are random, as after training."""

import torch
from peft import get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from moe_adapt.tuner import RoutedLoraConfig

IDS = torch.arange(12).reshape(2, 6)


def build_base(hidden=16):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=hidden,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    return LlamaForCausalLM(config).eval()


def build_model(adapter_name="default", **options):
    settings = {
        "method": "dynmole",
        "num_experts": 3,
        "r": 2,
        "alpha": 4,
        "task_type": "CAUSAL_LM",
        **options,
    }
    model = get_peft_model(build_base(), RoutedLoraConfig(**settings), adapter_name=adapter_name)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "moe_adapt_" in name:
            parameter.data.normal_(generator=generator)
    return model.eval()


def logits(model):
    with torch.inference_mode():
        return model(input_ids=IDS).logits
