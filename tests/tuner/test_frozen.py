"""A frozen expert stays bit-identical, whatever is done to the model."""

import peft
import pytest
import torch

from moe_adapt.errors import UserError
from moe_adapt.tuner import RoutedLoraConfig
from tests.tuner.tiny import adapted, batch


def frozen_buffers(model):
    return {name: value.clone() for name, value in model.state_dict().items() if "_frozen." in name}


def train(model, optimizer, steps=3):
    model.train()
    for _ in range(steps):
        loss = model(**batch()).loss + model.base_model.aux_loss()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize(
    "make_optimizer",
    [
        lambda ps: torch.optim.AdamW(ps, lr=0.1, weight_decay=0.1),
        lambda ps: torch.optim.AdamW(ps, lr=0.1, weight_decay=0.1, foreach=True),
        lambda ps: torch.optim.AdamW(ps, lr=0.1, weight_decay=0.1, fused=True),
        lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9, weight_decay=0.1),
    ],
    ids=["adamw", "foreach", "fused", "sgd"],
)
def test_optimizers_do_not_touch_it(make_optimizer):
    model = adapted("top_k", num_experts=4)
    model.base_model.freeze_experts([1, 2])
    before = frozen_buffers(model)
    assert len(before) == 2 * 2 * 4
    optimizer = make_optimizer([p for p in model.parameters() if p.requires_grad])
    live = model.base_model.model.model.layers[0].mlp.gate_proj.moe_adapt_A["default"].detach().clone()
    train(model, optimizer)
    after = frozen_buffers(model)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not torch.equal(live, model.base_model.model.model.layers[0].mlp.gate_proj.moe_adapt_A["default"])


def test_peft_cannot_thaw_it():
    model = adapted("top_k", num_experts=4)
    model.base_model.freeze_experts([0])
    before = frozen_buffers(model)
    with model.disable_adapter():
        model(**batch())
    model.base_model.disable_adapter_layers()
    model.base_model.enable_adapter_layers()
    model.add_adapter("second", RoutedLoraConfig(target_modules=["q_proj"], r=2))
    model.set_adapter("second")
    model.set_adapter("default")
    model.eval().generate(**{k: v for k, v in batch().items() if k != "labels"}, max_new_tokens=2)
    train(model, torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1))
    after = frozen_buffers(model)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_gradients_of_live_experts_do_not_change_when_others_freeze():
    free, partly = adapted("soft", num_experts=4), adapted("soft", num_experts=4)
    partly.base_model.freeze_experts([2, 0])
    for model in (free, partly):
        model.train()(**batch()).loss.backward()
    a = free.base_model.model.model.layers[0].self_attn.v_proj.moe_adapt_A["default"].grad
    b = partly.base_model.model.model.layers[0].self_attn.v_proj.moe_adapt_A["default"].grad
    torch.testing.assert_close(b, a[[1, 3]])


def test_freezing_every_expert_leaves_the_router():
    model = adapted("soft", num_experts=3)
    model.base_model.freeze_experts([0, 1, 2])
    groups = model.base_model.parameter_groups()
    assert not groups["experts"]
    assert len(groups["router"]) == 8
    model.train()(**batch()).loss.backward()
    assert all(parameter.grad.abs().sum() > 0 for _, parameter in groups["router"])


def test_an_index_out_of_range_is_refused():
    with pytest.raises(UserError, match="experts 0 to 3"):
        adapted("soft", num_experts=4).base_model.freeze_experts([4])


def test_a_saved_frozen_expert_stays_frozen(tmp_path):
    from tests.tuner.tiny import llama

    model = adapted("top_k", num_experts=4)
    model.base_model.freeze_experts([1])
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(llama(), tmp_path, is_trainable=True, low_cpu_mem_usage=True)
    before = frozen_buffers(loaded)
    train(loaded, torch.optim.AdamW([p for p in loaded.parameters() if p.requires_grad], lr=0.1))
    assert all(torch.equal(before[name], value) for name, value in frozen_buffers(loaded).items())
    original = frozen_buffers(model)
    assert all(torch.equal(before[name], original[name]) for name in original)
