"""Batches with `adapter_names`: every row as if its adapter ran alone."""

import copy

import peft
import pytest
import torch

from moe_adapt.errors import UserError
from moe_adapt.tuner import MixedLoraBatches, RoutedLoraConfig
from tests.tuner.tiny import PROJECTIONS, batch, llama, randomize

NAMES = ["one", "two", "__base__", "three", "one"]
ROWS = len(NAMES)


def inputs(rows=ROWS):
    return {key: value for key, value in batch(rows).items() if key != "labels"}


def alone(model, names=NAMES, **inputs):
    """Return the logits of each row, computed with its own adapter active for the whole batch."""
    rows = []
    for row, name in enumerate(names):
        if name == "__base__":
            with model.disable_adapter():
                rows.append(model(**inputs).logits[row])
        else:
            model.set_adapter(name)
            rows.append(model(**inputs).logits[row])
    model.set_adapter("one")
    return torch.stack(rows)


def with_loras(**options):
    settings = {"target_modules": PROJECTIONS, "init_lora_weights": False, "task_type": "CAUSAL_LM"}
    torch.manual_seed(3)
    model = peft.get_peft_model(llama(), peft.LoraConfig(r=2, lora_alpha=8, **settings), "one")
    model.add_adapter("two", peft.LoraConfig(r=8, lora_alpha=8, use_rslora=True, **settings, **options))
    fewer = settings | {"target_modules": ["q_proj", "down_proj"]}
    model.add_adapter("three", peft.LoraConfig(r=3, lora_alpha=5, **fewer))
    return model.eval()


def with_routed(dtype=torch.float32, **options):
    settings = {"r": 4, "alpha": 8, "dropout": 0.0, "target_modules": PROJECTIONS} | options
    one = RoutedLoraConfig(method="top_k", num_experts=4, task_type="CAUSAL_LM", **settings)
    model = peft.get_peft_model(llama(dtype), one, "one")
    smaller = settings | {"r": 2, "alpha": 3}
    model.add_adapter("two", RoutedLoraConfig(method="dynmole", num_experts=3, **smaller))
    model.add_adapter("three", RoutedLoraConfig(method="lora", **settings | {"target_modules": ["q_proj"]}))
    randomize(model)
    return model.eval()


@torch.no_grad()
def test_pefts_lora():
    model = with_loras()
    expected = alone(model, **inputs())
    pefts = model(**inputs(), adapter_names=NAMES).logits
    with MixedLoraBatches(model) as mixed:
        assert len(mixed.layers) == 2 * len(PROJECTIONS)
        found = model(**inputs(), adapter_names=NAMES).logits
        assert torch.equal(model(**inputs(), adapter_names=NAMES).logits, found)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(model(**inputs(), adapter_names=NAMES).logits, pefts)


@torch.no_grad()
def test_generation_with_pefts_lora():
    model = with_loras()
    options = {"max_new_tokens": 5, "do_sample": False, "adapter_names": NAMES}
    for beams in (1, 2):
        expected = model.generate(**inputs(), num_beams=beams, **options)
        with MixedLoraBatches(model):
            assert torch.equal(model.generate(**inputs(), num_beams=beams, **options), expected)


@torch.no_grad()
def test_changed_adapters_are_stacked_again():
    model = with_loras()
    with MixedLoraBatches(model):
        before = model(**inputs(), adapter_names=NAMES).logits
        model.base_model.model.model.layers[0].self_attn.q_proj.lora_B["two"].weight.mul_(3)
        changed = model(**inputs(), adapter_names=NAMES).logits
        expected = alone(model, **inputs())
        model.delete_adapter("three")
        fewer = model(**inputs(2), adapter_names=NAMES[:2]).logits
    assert not torch.equal(before[1], changed[1])
    torch.testing.assert_close(changed, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fewer, alone(model, NAMES[:2], **inputs(2)), rtol=1e-4, atol=1e-5)


def test_gradients_flow_as_in_pefts_own_way():
    model = with_loras()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)

    def gradients():
        model(**inputs(), adapter_names=NAMES).logits.square().mean().backward()
        found = {name: parameter.grad for name, parameter in model.named_parameters() if "lora_" in name}
        model.zero_grad(set_to_none=True)
        return found

    expected = gradients()
    with MixedLoraBatches(model):
        found = gradients()
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-6, msg=name)


@torch.no_grad()
def test_a_copied_model_is_served_by_its_own_weights():
    model = with_loras()
    with MixedLoraBatches(model):
        twin = copy.deepcopy(model)
        twin.base_model.model.model.layers[0].self_attn.q_proj.lora_B["two"].weight.zero_()
        same, other = (each(**inputs(), adapter_names=NAMES).logits for each in (model, twin))
    assert torch.equal(same[0], other[0]) and not torch.equal(same[1], other[1])


def test_variants_are_left_to_peft():
    model = with_loras(lora_bias=True)
    with torch.no_grad(), MixedLoraBatches(model):
        model(**inputs(1), adapter_names=["one"])
        with pytest.raises(UserError, match="more than plain LoRA"):
            model(**inputs(1), adapter_names=["two"])


def test_models_without_lora_are_refused():
    with pytest.raises(UserError, match="no linear LoRA"):
        MixedLoraBatches(llama())


@torch.no_grad()
def test_routed_adapters():
    model = with_routed()
    expected = alone(model, **inputs())
    found = model(**inputs(), adapter_names=NAMES).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(expected[0], expected[1])


@torch.no_grad()
@pytest.mark.parametrize("compute_dtype", ["adapter", "base"])
def test_routed_adapters_with_frozen_experts_on_a_half_precision_base(compute_dtype):
    model = with_routed(torch.bfloat16, compute_dtype=compute_dtype)
    model.base_model.freeze_experts([1, 3], "one")
    expected = alone(model, **inputs())
    found = model(**inputs(), adapter_names=NAMES).logits
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)


@torch.no_grad()
def test_generation_with_routed_adapters():
    model = with_routed()
    options = {"max_new_tokens": 4, "do_sample": False}
    together = model.generate(**inputs(), adapter_names=NAMES, num_beams=2, **options)
    for row, name in enumerate(NAMES):
        own = model.generate(**inputs(), adapter_names=[name] * ROWS, num_beams=2, **options)
        assert torch.equal(own[row], together[row])


@torch.no_grad()
def test_records_hold_the_tokens_of_their_own_adapter():
    model = with_routed()
    with model.base_model.record():
        model(**inputs(), adapter_names=NAMES)
    records = model.base_model.hooks.session.context.records
    masks = {adapter: record.mask for (adapter, _, _), record in records.items()}
    real = inputs()["attention_mask"].bool()
    for name in ("one", "two", "three"):
        rows = torch.tensor([other == name for other in NAMES])
        assert torch.equal(masks[name].view(real.shape), real & rows.unsqueeze(1))


def test_bad_names():
    model = with_routed()
    with pytest.raises(UserError, match=r"no adapter 'tow'.*two"):
        model(**inputs(1), adapter_names=["tow"])
    with pytest.raises(UserError, match="5 samples"):
        model(**inputs(), adapter_names=NAMES[:3])
    with pytest.raises(UserError, match="eval"):
        model.train()(**inputs(), adapter_names=NAMES)
    hooks = [hook for module in model.modules() for hook in module._forward_pre_hooks.values()]
    assert not [hook for hook in hooks if "naming_adapters" in getattr(hook, "__qualname__", "")]
