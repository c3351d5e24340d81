"""What users of PEFT's LoRA write: its words, its names of layers, a second adapter, a random B."""

import json

import peft
import pytest
import torch
from torch import nn
from transformers import GptOssConfig, GptOssForCausalLM

from moe_adapt.errors import UserError
from moe_adapt.tuner import RoutedLoraConfig
from moe_adapt.tuner.model import adapted_layers
from moe_adapt.tuner.targets import resolve_targets
from tests.tuner.tiny import adapted, batch, llama


def test_loras_words_are_understood():
    config = RoutedLoraConfig(lora_alpha=12, lora_dropout=0.25, init_lora_weights=False)
    assert (config.alpha, config.dropout, config.init_weights) == (12, 0.25, False)
    assert "lora_alpha" not in config.to_dict()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank_pattern": {"q_proj": 4}}, "give r a mapping"),
        ({"alpha_pattern": {"q_proj": 4}}, "give alpha a mapping"),
        ({"use_dora": True}, "plain LoRA"),
        ({"lora_alpha": 1, "alpha": 2}, "the same option"),
        ({"init_lora_weights": "pissa"}, "start at B = 0"),
        ({"num_expert": 3}, "Did you mean 'num_experts'"),
    ],
)
def test_other_words_say_what_to_write(options, message):
    with pytest.raises(UserError, match=message):
        RoutedLoraConfig(**options)


def test_a_file_of_a_newer_version_is_read(tmp_path):
    RoutedLoraConfig(target_modules=["q_proj"]).save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "of_tomorrow": 1}))
    with pytest.warns(UserWarning, match="of_tomorrow"):
        assert peft.PeftConfig.from_pretrained(tmp_path).target_modules == ["q_proj"]


def test_blocks_of_a_target_group():
    for targets in ("attention", "all-linear"):
        model = peft.get_peft_model(
            llama(layers=3), RoutedLoraConfig(target_modules=targets, layers_to_transform=[0, 2], r=2)
        )
        depths = {layer.site.split(".")[2] for layer in adapted_layers(model)}
        assert depths == {"0", "2"}, targets
    with pytest.raises(UserError, match=r"numbered \[0, 1, 2\]"):
        config = RoutedLoraConfig(target_modules="ffn", layers_to_transform=7, layers_pattern="layers")
        peft.get_peft_model(llama(layers=3), config)
    with pytest.raises(
        ValueError, match="`layers_to_transform` cannot be used when `target_modules` is a str"
    ):
        RoutedLoraConfig(target_modules=r".*q_proj", layers_to_transform=[0])
    with pytest.raises(ValueError, match="`layers_to_transform` must also be specified"):
        RoutedLoraConfig(target_modules=["q_proj"], layers_pattern="layers")


def test_a_second_adapter_on_all_linear_layers():
    model = peft.get_peft_model(llama(), RoutedLoraConfig(target_modules="all-linear", r=2))
    sites = [layer.site for layer in adapted_layers(model)]
    model.add_adapter("other", RoutedLoraConfig(method="mola", r=2))
    assert [layer.site for layer in adapted_layers(model) if "other" in layer.specs] == sites
    stock = peft.get_peft_model(llama(), peft.LoraConfig(target_modules=["q_proj"]))
    assert "model.layers.0.self_attn.q_proj" in resolve_targets("all-linear", stock.base_model.model, "llama")


def test_random_weights_change_the_output():
    torch.manual_seed(0)
    plain = llama()(**batch()).logits
    for start, differs in ((True, False), (False, True)):
        config = RoutedLoraConfig(target_modules=["q_proj"], r=2, init_weights=start)
        model = peft.get_peft_model(llama(), config).eval()
        assert bool((model(**batch()).logits - plain).abs().max() > 1e-4) is differs


def test_gpt_oss(tmp_path):
    torch.manual_seed(0)
    settings = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    config = GptOssConfig(
        **settings,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        num_local_experts=4,
        num_experts_per_tok=2,
        layer_types=["full_attention"],
    )
    base = GptOssForCausalLM(config).eval()
    for parameter in base.parameters():
        nn.init.normal_(parameter, std=0.2)
    rows = {"input_ids": torch.arange(1, 13).view(2, 6), "labels": torch.arange(1, 13).view(2, 6)}
    with torch.no_grad():
        plain = base(**rows).logits
    options = RoutedLoraConfig(method="top_k", target_modules="moe", modifiers=[], r=2, task_type="CAUSAL_LM")
    model = peft.get_peft_model(base, options).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(**rows).logits, plain, rtol=1e-4, atol=1e-5)
    model.train()(**rows).loss.backward()
    grown = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is not None]
    assert any("down_B" in name for name in grown) and any("gate_up_B" in name for name in grown)


@pytest.mark.parametrize("name", ["HQQLinear", "QuantLinear", "WQLinear_GEMM"])
def test_quantised_layers_of_other_formats_are_adapted_if_they_can_be_called(name):
    stored = nn.Linear(32, 32, bias=False)

    def call(layer, x):
        return nn.functional.linear(x, layer.qweight.to(x.dtype))

    kind = type(name, (nn.Module,), {"forward": call})
    base = llama()
    for block in base.model.layers:
        layer = kind()
        layer.in_features, layer.out_features = 32, 32
        layer.register_buffer("qweight", (stored.weight.detach() * 100).round().to(torch.int8))
        block.self_attn.q_proj = layer
    model = adapted("uniform_dense", base=base, target_modules=["q_proj"], num_experts=2)
    loss = model.train()(**batch()).loss
    loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    with pytest.raises(NotImplementedError, match=f"q_proj is a {name}, a quantised weight"):
        model.merge_adapter()
