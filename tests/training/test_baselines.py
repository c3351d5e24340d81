"""The equal-size baseline: same layers, as many parameters, the same scale."""

import pytest
from peft import get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from moe_adapt.training.baselines import equal_parameter_lora
from moe_adapt.tuner import RoutedLoraConfig, RoutedLoraLayer


def build_base():
    config = LlamaConfig(
        vocab_size=32, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2
    )
    return LlamaForCausalLM(config)


def scales(model):
    return {m.site: m.scales["default"] for m in model.modules() if isinstance(m, RoutedLoraLayer)}


@pytest.mark.parametrize("use_rslora", [False, True])
def test_equal_size_sites_and_scale(use_rslora):
    config = RoutedLoraConfig(method="dynmole", num_experts=6, r=4, alpha=8, use_rslora=use_rslora)
    mixture = get_peft_model(build_base(), config)
    plain = get_peft_model(build_base(), equal_parameter_lora(mixture))
    ours, theirs = mixture.base_model.summary(), plain.base_model.summary()
    assert ours.sites == theirs.sites == 6
    assert theirs.experts == 6
    assert theirs.trainable_total == pytest.approx(ours.trainable_total, rel=0.02)
    assert scales(plain) == pytest.approx(scales(mixture))
