"""Every method preset on a tiny Llama: trains, checkpoints, saves, reloads; controls stay what they are."""

import peft
import pytest
import torch
from safetensors.torch import load_file

from moe_adapt.errors import UserError
from moe_adapt.tuner.methods import METHODS
from tests.tuner.tiny import adapted, batch, llama

WITHOUT_ROUTER = (
    "lora",
    "lora_sum",
    "uniform_dense",
    "random_fixed",
    "hash",
    "thor",
    "router_frozen",
    "k_means",
    "arrow",
    "smoe_dropout",
)
LOSSES = [{"name": "load_balance", "weight": 0.5}, {"name": "z_loss", "weight": 0.1}]


def trained(method, checkpointing=None, fresh=False, steps=3):
    """State after training with auxiliary losses, all in float64."""
    model = adapted(method, aux_losses=LOSSES).double().train()
    if fresh:
        for name, buffer in model.named_buffers():
            if "moe_adapt_router__" in name:
                buffer.zero_()
    if checkpointing is not None:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": checkpointing})
        model.enable_input_require_grads()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.base_model.follow(optimizer)
    for _ in range(steps):
        (model(**batch()).loss + model.base_model.aux_loss()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, before, model.state_dict()


@pytest.mark.parametrize("method", METHODS)
def test_three_steps_are_the_same_under_checkpointing(method):
    model, before, plain = trained(method)
    experts = model.base_model.parameter_groups()["experts"]
    assert all(not torch.equal(p, before[f"base_model.{name}"]) for name, p in experts)
    assert (not model.base_model.parameter_groups()["router"]) == (method in WITHOUT_ROUTER)
    for use_reentrant in (False, True):
        _, _, state = trained(method, checkpointing=use_reentrant)
        for name, value in plain.items():
            torch.testing.assert_close(state[name], value, rtol=1e-6, atol=1e-9, msg=name)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_k_means_starts_and_learns_once_per_step_under_checkpointing(use_reentrant):
    _, _, plain = trained("k_means", fresh=True)
    _, _, state = trained("k_means", checkpointing=use_reentrant, fresh=True)
    counts = [value for name, value in state.items() if "scorer__counts" in name]
    assert [count.sum().item() for count in counts] == [3 * 11] * 8
    for name, value in plain.items():
        torch.testing.assert_close(state[name], value, rtol=1e-6, atol=1e-9, msg=name)


@pytest.mark.parametrize("method", METHODS)
def test_reloads_under_another_name(method, tmp_path):
    model = adapted(method).eval()
    expected = model(**batch()).logits
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(llama(), tmp_path, adapter_name="another").eval()
    assert torch.equal(loaded(**batch()).logits, expected)
    assert not torch.allclose(llama().eval()(**batch()).logits, expected)


@pytest.mark.parametrize(
    ("method", "tensors"), [("router_frozen", {"weight"}), ("k_means", {"means", "counts"}), ("hash", set())]
)
def test_frozen_routers_are_saved_and_no_optimizer_sees_them(method, tensors, tmp_path):
    model = adapted(method)
    model.save_pretrained(tmp_path)
    names = load_file(tmp_path / "adapter_model.safetensors")
    assert {name.rpartition("__")[2] for name in names if "moe_adapt_router__" in name} == tensors
    assert not any("moe_adapt_router__" in name for name, _ in model.named_parameters())


def test_a_frozen_router_does_not_move():
    _, before, after = trained("router_frozen")
    routers = [name for name in before if "moe_adapt_router__" in name]
    assert len(routers) == 8
    assert all(torch.equal(before[name], after[name]) for name in routers)


@pytest.mark.parametrize("method", ["hash", "random_fixed"])
def test_routing_by_token_id_needs_ids_and_generates_with_a_cache(method):
    model = adapted(method).eval()
    ids = batch(left_padding=0)["input_ids"]
    settings = {"max_new_tokens": 5, "do_sample": False}
    cached = model.generate(input_ids=ids, use_cache=True, **settings)
    assert torch.equal(cached, model.generate(input_ids=ids, use_cache=False, **settings))
    with pytest.raises(UserError, match="without input_ids"):
        model(inputs_embeds=model.get_input_embeddings()(ids))


@pytest.mark.parametrize(("method", "options"), [("uniform_dense", {}), ("hash", {"num_experts": 1})])
def test_constant_gates_merge(method, options):
    model = adapted(method, **options).eval()
    expected = model(**batch()).logits
    merged = model.merge_and_unload()
    torch.testing.assert_close(merged(**batch()).logits, expected, rtol=1e-4, atol=1e-5)


def test_mola_has_more_experts_in_later_blocks():
    model = adapted("mola", base=llama(layers=8), target_modules=None)
    sites = model.peft_config["default"].sites
    counts = [sites[f"model.layers.{depth}.self_attn.o_proj"]["num_experts"] for depth in range(8)]
    assert counts == [2, 2, 4, 4, 6, 6, 8, 8]
    assert len(sites) == 8 * 7


def test_statistics_count_true_experts_only():
    model = adapted("adamoe").train()
    model(**batch())
    for stats in model.base_model.routing_stats().values():
        assert stats.load.shape == stats.importance.shape == (8,)
        assert 0 < stats.mean_k < 4
        assert 0 <= stats.entropy <= 1
