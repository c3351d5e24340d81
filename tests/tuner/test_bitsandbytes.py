"""Bases in four and eight bits by bitsandbytes, on the CPU: train, save, load, merge."""

import pytest
import torch
from peft import get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from moe_adapt.hub.load import load_adapter
from moe_adapt.tuner import RoutedLoraConfig
from moe_adapt.tuner.model import adapted_layers

bnb = pytest.importorskip(
    "bitsandbytes", reason="needs the extra quantized: pip install 'moe-adapt[quantized]'"
)

IDS = torch.arange(1, 13).view(2, 6)


def plain():
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 32}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=1))


def quantized(bits):
    base = plain()
    for block in base.model.layers:
        for holder in (block.self_attn, block.mlp):
            for name, child in list(holder.named_children()):
                if isinstance(child, nn.Linear):
                    sizes = child.in_features, child.out_features
                    if bits == 4:
                        new = bnb.nn.Linear4bit(
                            *sizes, bias=False, quant_type="nf4", compute_dtype=torch.float32
                        )
                        new.weight = bnb.nn.Params4bit(
                            child.weight.data, requires_grad=False, quant_type="nf4"
                        )
                    else:
                        new = bnb.nn.Linear8bitLt(*sizes, bias=False, has_fp16_weights=False)
                        new.weight = bnb.nn.Int8Params(
                            child.weight.data, requires_grad=False, has_fp16_weights=False
                        )
                    setattr(holder, name, new.to("cpu"))
    return base.eval()


def adapted(base, method, **options):
    torch.manual_seed(0)
    settings = {"target_modules": ["q_proj", "up_proj"], "r": 2, "dropout": 0.0, "task_type": "CAUSAL_LM"}
    return get_peft_model(base, RoutedLoraConfig(method=method, **settings, **options))


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


@pytest.mark.parametrize("bits", [4, 8])
def test_trains_saves_and_loads(tmp_path, bits):
    model = adapted(quantized(bits), "top_k", num_experts=3)
    assert len(adapted_layers(model)) == 4
    trained = [p for p in model.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}
    optimizer = torch.optim.AdamW(trained, lr=0.02)
    losses = []
    for _ in range(6):
        loss = model.train()(input_ids=IDS, labels=IDS).loss + model.base_model.aux_loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    model.save_pretrained(tmp_path / "adapter")
    loaded = load_adapter(quantized(bits), tmp_path / "adapter", adapter_name="again")
    torch.testing.assert_close(logits(loaded), logits(model))


@pytest.mark.parametrize("bits", [4, 8])
def test_one_matrix_is_merged_with_the_rounding_of_the_format(bits):
    model = adapted(quantized(bits), "uniform_dense", num_experts=2)
    for layer in adapted_layers(model):
        nn.init.normal_(layer.moe_adapt_B["default"], std=0.2)
    with model.disable_adapter():
        before = logits(model)
    beside = logits(model)
    model.merge_adapter()
    merged = logits(model)
    change = (beside - before).norm()
    assert change > 0 and (merged - beside).norm() < (0.5 if bits == 4 else 0.1) * change
    model.unmerge_adapter()
    assert (logits(model) - beside).norm() < (0.5 if bits == 4 else 0.1) * change


def test_torchao_is_adapted_and_names_itself_where_it_cannot_be_merged():
    torchao = pytest.importorskip("torchao.quantization", reason="needs the extra quantized")
    base = plain()
    torchao.quantize_(base.model, torchao.Int8WeightOnlyConfig())
    model = adapted(base, "uniform_dense", num_experts=2)
    model.train()(input_ids=IDS, labels=IDS).loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    with pytest.raises(NotImplementedError, match="a quantised weight that cannot take a merged adapter"):
        model.merge_adapter()
