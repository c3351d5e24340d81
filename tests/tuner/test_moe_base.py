"""Bases that are mixtures themselves: gate with modifiers and condensers, LoRA on the fused experts."""

import peft
import pytest
import torch
from transformers import (
    MixtralConfig,
    MixtralForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
)

from moe_adapt.errors import UserError
from moe_adapt.tuner import RoutedLoraConfig
from tests.tuner.tiny import batch, randomize

SHAPE = dict(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    num_experts_per_tok=2,
    pad_token_id=0,
)


def mixtral():
    return MixtralForCausalLM(MixtralConfig(**SHAPE, num_local_experts=4))


def olmoe():
    return OlmoeForCausalLM(OlmoeConfig(**SHAPE, num_experts=4))


def qwen():
    sizes = dict(moe_intermediate_size=24, shared_expert_intermediate_size=24)
    return Qwen2MoeForCausalLM(Qwen2MoeConfig(**SHAPE, num_experts=4, **sizes))


def adapted(make, condensers=1, method="condenser", budget="replace", **options):
    torch.manual_seed(0)
    modifier = {"name": "condense_bias", "gamma": 0.5, "condensers": condensers, **options}
    config = RoutedLoraConfig(
        method=method,
        target_modules="moe",
        r=2,
        alpha=4,
        modifiers=[modifier],
        selector={"name": "condenser", "budget": budget},
        task_type="CAUSAL_LM",
    )
    return peft.get_peft_model(make(), config)


def gates(model):
    return [layer.mlp.gate for layer in model.base_model.model.model.layers]


MAKERS = pytest.mark.parametrize("make", [mixtral, olmoe, qwen])


@MAKERS
def test_a_fresh_adapter_changes_nothing(make):
    torch.manual_seed(0)
    base = make().eval()
    expected = base(**batch()).logits
    model = adapted(make).eval()
    torch.testing.assert_close(model(**batch()).logits, expected, rtol=1e-4, atol=1e-5)
    with model.disable_adapter():
        torch.testing.assert_close(model(**batch()).logits, expected)
    assert model.base_model.summary().experts == 2 * 4


@MAKERS
def test_router_state_keeps_its_dtype_on_a_half_precision_base(make):
    model = adapted(lambda: make().to(torch.bfloat16))
    for gate in gates(model):
        kept = {name.split("__")[-1].split(".")[0]: value.dtype for name, value in gate.named_buffers()}
        assert kept["bias"] == kept["used"] == torch.float32
        assert kept["chosen"] == torch.bool


@MAKERS
def test_it_trains_in_two_phases_and_reloads(make, tmp_path):
    model = adapted(make).train()
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    before = {name: p.detach().clone() for name, p in trainable.items()}
    assert len(trainable) == 2 * 4 and all("moe_adapt_" in name for name in trainable)
    optimizer = torch.optim.AdamW(trainable.values(), lr=0.05)
    model.base_model.follow(optimizer)
    for progress in (0.0, 0.2, 0.6, 0.8):
        model.base_model.progress = progress
        (model(**batch()).loss + model.base_model.aux_loss()).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert all(not torch.equal(p, before[name]) for name, p in trainable.items())
    assert not model.base_model.uncalled_sites()
    for gate in gates(model):
        assert int(gate.moe_adapt_router__modifiers__0__chosen["default"].sum()) == 1
        assert gate.moe_adapt_router__modifiers__0__bias["default"].any()
    stats = model.base_model.routing_stats()
    assert len(stats) == 2 and all(site.mean_k == 2 for site in stats.values())
    expected = model.eval()(**batch()).logits
    model.save_pretrained(tmp_path)
    torch.manual_seed(0)
    loaded = peft.PeftModel.from_pretrained(make(), tmp_path, adapter_name="other").eval()
    torch.testing.assert_close(loaded(**batch()).logits, expected)


def test_experts_are_w_plus_s_b_a():
    model = adapted(mixtral, condensers=0)
    randomize(model)
    experts = model.base_model.model.model.layers[0].mlp.experts
    base = experts.get_base_layer()
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(3))
    index = torch.tensor([[0, 2], [1, 4], [3, 0], [2, 1], [4, 4]])
    weights = torch.rand(5, 2, generator=torch.Generator().manual_seed(4)).masked_fill(index == 4, 0)
    plain = mixtral().model.layers[0].mlp.experts
    # The grouped product of transformers leaves empty places unwritten: whatever stood there, times zero.
    plain.config._experts_implementation = "eager"
    for name in ("gate_up", "down"):
        a, b = (getattr(experts, f"moe_adapt_{name}_{factor}")["default"] for factor in "AB")
        merged = getattr(base, f"{name}_proj") + 2 * torch.einsum("oer,erd->eod", b, a)
        getattr(plain, f"{name}_proj").data = merged.detach()
    torch.testing.assert_close(experts(x, index, weights), plain(x, index, weights), rtol=1e-4, atol=1e-5)
    assert not experts(x, index, weights)[4].any()


def test_condensers_on_top_raise_the_number_of_experts():
    model = adapted(mixtral, budget="add", condense_from=0.0).train()
    model(**batch())
    assert all(site.mean_k == 3 for site in model.base_model.routing_stats().values())
    with pytest.raises(UserError, match="2 condensers would fill"):
        adapted(mixtral, condensers=2)


def test_gradient_checkpointing_gives_the_same_gradients():
    gradients = []
    for checkpointing in (False, True):
        model = adapted(mixtral).train()
        randomize(model)
        if checkpointing:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model(**batch()).loss.backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("method", ["film", "slices"])
def test_fused_experts_take_loras_only(method):
    config = RoutedLoraConfig(method=method, target_modules="moe", task_type="CAUSAL_LM")
    with pytest.raises(UserError, match="whose experts get LoRAs of their own"):
        peft.get_peft_model(mixtral(), config)
