"""The tuner as a PEFT citizen: enable, disable, generate, unload, merge, other layer types, quantities."""

import copy
import pickle

import peft
import pytest
import timm
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from moe_adapt.tuner import RoutedLoraConfig, RoutedLoraLayer
from tests.tuner.tiny import PROJECTIONS, adapted, batch, llama, randomize


def inputs():
    return {key: value for key, value in batch().items() if key != "labels"}


def test_generate_with_and_without_cache_agree():
    model = adapted().eval()
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    cached = model.generate(**inputs(), **options)
    assert torch.equal(cached, model.generate(**inputs(), use_cache=False, **options))


def test_disabled_adapter_is_the_base_bit_for_bit():
    base = llama().eval()(**inputs()).logits
    model = adapted().eval()
    assert not torch.equal(model(**inputs()).logits, base)
    with model.disable_adapter():
        assert torch.equal(model(**inputs()).logits, base)
    assert not torch.equal(model(**inputs()).logits, base)


def test_unload_returns_the_original_modules_without_hooks():
    base = llama()
    originals = dict(base.named_modules())
    model = adapted(base=base)
    unloaded = model.unload()
    assert dict(unloaded.named_modules()).keys() == originals.keys()
    assert all(module is originals[name] for name, module in unloaded.named_modules())
    assert not unloaded._forward_pre_hooks
    assert not unloaded._forward_hooks


def test_token_dependent_gates_are_not_merged():
    with pytest.raises(NotImplementedError, match="gates depend on the token"):
        adapted("dynmole").merge_and_unload()


def test_constant_gates_are_merged_exactly():
    model = adapted("soft", scorer="uniform", num_experts=4).eval()
    expected = model(**inputs()).logits
    assert model.supports_lora_conversion()
    torch.testing.assert_close(model.merge_and_unload()(**inputs()).logits, expected, rtol=1e-4, atol=1e-5)
    assert not adapted("dynmole").supports_lora_conversion()


def test_predictions_do_not_depend_on_batch_mates():
    model = adapted().eval()
    together = model(**inputs()).logits
    alone = model(**{key: value[1:2] for key, value in inputs().items()}).logits
    torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-5)


def test_gpt2_layers():
    torch.manual_seed(0)
    base = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2, n_positions=16)).eval()
    expected = base(**inputs()).logits
    model = peft.get_peft_model(
        base, RoutedLoraConfig(method="lora", target_modules=["c_attn", "c_fc"])
    ).eval()
    torch.testing.assert_close(model(**inputs()).logits, expected)
    assert sum(isinstance(module, RoutedLoraLayer) for module in model.modules()) == 4
    randomize(model)
    adapted_logits = model(**inputs()).logits
    assert not torch.allclose(adapted_logits, expected)
    torch.testing.assert_close(
        model.merge_and_unload()(**inputs()).logits, adapted_logits, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    ("targets", "sites"), [("ffn", 2), ("attention", 2), ("all-linear", 4), ([r"qkv"], 1), (r".*fc1", 1)]
)
def test_timm_vit(targets, sites):
    base = timm.create_model("test_vit", num_classes=5)
    depth = len(base.blocks)
    config = RoutedLoraConfig(method="dynmole", r=2, target_modules=targets, modules_to_save=["head"])
    model = peft.get_peft_model(base, config)
    assert model.base_model.summary().sites == sites * depth
    randomize(model)
    images = torch.randn(2, 3, 160, 160)
    model.train()
    (model(images).sum() + model.base_model.aux_loss()).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert {stat.tokens for stat in model.base_model.routing_stats().values()} == {2 * 101}


def test_copies_and_pickles_are_independent():
    model = adapted().eval()
    expected = model(**inputs()).logits
    twin = copy.deepcopy(model)
    unpickled = pickle.loads(pickle.dumps(model))
    for other in (twin, unpickled):
        assert torch.equal(other(**inputs()).logits, expected)
        other.train()(**inputs())
        other.base_model.aux_loss()
    with pytest.raises(RuntimeError):
        model.base_model.aux_loss()


def test_summary_counts():
    model = adapted("dynmole", num_experts=[2, 4])
    summary = model.base_model.summary()
    assert (summary.sites, summary.linear_layers, summary.experts) == (8, 15, 4 * 2 + 4 * 4)
    assert summary.trainable_total == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert summary.trainable["router"] == sum(e * w for e in (2, 4) for w in (32, 32, 32, 48))
    assert "8 of 15" in str(summary)


def test_every_trainable_tensor_moves_within_three_steps():
    model = peft.get_peft_model(llama(), RoutedLoraConfig(method="dynmole", r=2, target_modules=PROJECTIONS))
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0
    )
    model.train()
    for _ in range(3):
        (model(**batch()).loss + model.base_model.aux_loss()).backward()
        optimizer.step()
        optimizer.zero_grad()
    after = dict(model.named_parameters())
    assert not [name for name, value in before.items() if torch.equal(value, after[name])]


def test_sites_that_no_forward_reaches_are_reported():
    class Lazy(nn.Module):
        def __init__(self):
            super().__init__()
            self.used = nn.Linear(4, 4)
            self.skipped = nn.Linear(4, 4)

        def forward(self, x):
            return self.used(x)

    model = peft.get_peft_model(Lazy(), RoutedLoraConfig(target_modules=["used", "skipped"]))
    model(torch.randn(2, 4))
    assert model.base_model.uncalled_sites() == ["skipped"]


def test_several_active_adapters_add_up():
    model = adapted("soft", num_experts=2)
    model.add_adapter("second", RoutedLoraConfig(method="lora", r=2, dropout=0.0, target_modules=PROJECTIONS))
    randomize(model)
    model.base_model.set_adapter(["default", "second"])
    layer = model.base_model.model.model.layers[0].mlp.gate_proj
    x = torch.randn(3, 32)
    both = layer(x)
    parts = []
    for name in ("default", "second"):
        layer.set_adapter(name)
        parts.append(layer(x) - layer.base_layer(x))
    torch.testing.assert_close(both, layer.base_layer(x) + sum(parts))


def test_compute_in_the_dtype_of_the_base():
    x = torch.randn(5, 32).bfloat16()
    outputs = []
    for dtype in ("adapter", "base"):
        model = adapted("top_k", base=llama(torch.bfloat16), compute_dtype=dtype)
        outputs.append(model.base_model.model.model.layers[0].mlp.gate_proj(x))
    assert outputs[0].dtype == outputs[1].dtype == torch.bfloat16
    torch.testing.assert_close(*outputs, rtol=0.1, atol=0.05)
    assert not torch.equal(*outputs)


def test_router_stays_fp32_on_a_half_precision_base():
    config = RoutedLoraConfig(target_modules=PROJECTIONS)
    model = peft.get_peft_model(llama(torch.bfloat16), config, autocast_adapter_dtype=False)
    dtypes = {name: p.dtype for name, p in model.named_parameters() if p.requires_grad}
    assert {d for n, d in dtypes.items() if "router" in n} == {torch.float32}
    assert {d for n, d in dtypes.items() if "router" not in n} == {torch.bfloat16}
    assert torch.isfinite(model(**inputs()).logits).all()


def test_rank_stabilised_scale():
    model = adapted("lora", r=4, alpha=8, use_rslora=True)
    assert model.base_model.model.model.layers[0].mlp.gate_proj.scales["default"] == 4.0


@pytest.mark.parametrize("method", ["top_k", "dynmole", "router_frozen", "adamoe"])
def test_one_product_for_router_and_experts_changes_nothing(method, monkeypatch):
    results = []
    for shared in (True, False):
        model = adapted(method).train()
        if not shared:
            monkeypatch.setattr(RoutedLoraLayer, "_shares_input", lambda *_: False)
        output = model(**batch())
        (output.loss + model.base_model.aux_loss()).backward()
        results.append([output.logits, *(p.grad for p in model.parameters() if p.requires_grad)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
