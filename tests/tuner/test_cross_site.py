"""Routers and experts that layers share: exact under checkpointing, named and counted once."""

import copy

import peft
import pytest
import torch
from safetensors.torch import load_file

from moe_adapt.errors import UserError
from moe_adapt.routing.context import RouteContext
from moe_adapt.routing.scorers.recurrent import RecurrentScorer
from moe_adapt.tuner import RoutedLoraConfig, add_experts
from moe_adapt.tuner.early import early_experts
from tests.tuner.test_compile import same_in_evaluation, same_in_training
from tests.tuner.tiny import adapted, adapter_gradients, batch, llama, randomize

SMALL_GATE = {"scorer": {"name": "pre_gate", "width": 16}}
METHODS = {"unipool": {}, "rexmoe": {}, "rmoe": {}, "read_me": SMALL_GATE}


def built(method, **options):
    return adapted(method, **METHODS[method] | options)


def backward(model):
    torch.manual_seed(0)
    model.base_model.progress = 0.3
    (model(**batch()).loss + model.base_model.aux_loss()).backward()
    return adapter_gradients(model)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradients_are_the_same_under_checkpointing(method, use_reentrant):
    model = built(method).double().train()
    expected = backward(model)
    model.zero_grad()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
    model.enable_input_require_grads()
    found = backward(model)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-6, atol=1e-10)


def test_the_state_carries_gradients_from_layer_to_layer(monkeypatch):
    whole = backward(built("rmoe").double().train())
    plain = RouteContext.pass_on

    def cut(self, name, tokens, update):
        return plain(self, name, tokens, lambda before: update(None if before is None else before.detach()))

    monkeypatch.setattr(RouteContext, "pass_on", cut)
    parts = backward(built("rmoe").double().train())
    first = next(
        name for name in whole if "layers.0.self_attn.q_proj" in name and name.endswith("down.default")
    )
    assert not torch.allclose(whole[first], parts[first], rtol=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_a_file_holds_what_is_shared_once_and_gives_it_back_under_any_name(method, tmp_path):
    model = built(method).eval()
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "adapter_model.safetensors")
    assert sum(value.numel() for value in state.values()) == model.base_model.summary().trainable_total
    assert any("moe_adapt_common" in name for name in state)
    again = peft.PeftModel.from_pretrained(llama(), tmp_path, adapter_name="other").eval()
    again.load_adapter(tmp_path, "third")
    randomize(again.base_model.model.moe_adapt_common)
    again.delete_adapter("other")
    again.load_adapter(tmp_path, "fourth")
    again.set_adapter("fourth")
    with torch.no_grad():
        expected = model(**batch()).logits
        assert torch.equal(again(**batch()).logits, expected)
        assert torch.equal(copy.deepcopy(model)(**batch()).logits, expected)
    assert not [name for name, _ in again.named_parameters() if name.endswith(".other")]
    assert again.base_model.unload().state_dict().keys() == llama().state_dict().keys()


def test_pools_hold_the_experts_of_all_layers_of_a_shape():
    model = built("unipool", num_experts=6)
    names = [name for name, _ in model.named_parameters() if name.endswith("moe_adapt_A.default")]
    shapes = {
        (layer.in_features, layer.out_features)
        for layer in model.base_model.model.modules()
        if hasattr(layer, "specs")
    }
    assert len(names) == len(shapes) == 4
    assert model.base_model.summary().experts == 6 * len(shapes)
    optimized = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert len(optimized) == len({id(parameter) for parameter in optimized})


def test_adjacent_layers_of_one_name_reuse_experts():
    model = peft.get_peft_model(
        llama(layers=3), RoutedLoraConfig(method="rexmoe", num_experts=4, target_modules=["q_proj", "o_proj"])
    )
    pools = {layer.site: layer.specs["default"].pool for layer in model.modules() if hasattr(layer, "specs")}
    by_name = {
        name: [pools[f"model.layers.{i}.self_attn.{name}"] for i in range(3)] for name in ("q_proj", "o_proj")
    }
    for first, second, third in by_name.values():
        assert first == second != third
    assert not set(by_name["q_proj"]) & set(by_name["o_proj"])


def test_gradients_of_a_pool_are_the_sums_of_its_layers():
    model = built("unipool", aux_losses=[]).double().train()
    shared = backward_of_experts(model)
    layers = [layer for layer in model.modules() if hasattr(layer, "specs")]
    for layer in layers:  # the same experts, but each layer's own
        for factor in ("A", "B"):
            value = getattr(layer.pool("default"), f"moe_adapt_{factor}")["default"]
            getattr(layer, f"moe_adapt_{factor}")["default"] = torch.nn.Parameter(value.detach().clone())
    pools = {}
    for layer in layers:
        pools.setdefault(layer.specs["default"].pool, []).append(layer)
        layer.specs["default"].pool = None
    model.zero_grad()
    model(**batch()).loss.backward()
    for pool, members in pools.items():
        for factor in ("A", "B"):
            total = sum(getattr(layer, f"moe_adapt_{factor}")["default"].grad for layer in members)
            name = next(name for name in shared if f"pool_{pool}.moe_adapt_{factor}" in name)
            torch.testing.assert_close(shared[name], total, rtol=1e-8, atol=1e-12)


def backward_of_experts(model):
    model(**batch()).loss.backward()
    return adapter_gradients(model)


def test_a_pool_is_not_edited_layer_by_layer():
    model = built("unipool")
    for edit in (lambda: model.base_model.freeze_experts([0]), lambda: add_experts(model.base_model)):
        with pytest.raises(UserError, match="in a pool that other layers use"):
            edit()
    with pytest.raises(UserError, match="shares tensors with other layers"):
        add_experts(built("rmoe").base_model)
    with pytest.raises(UserError, match="share tensors, but 'moe_adapt_A' would be"):
        built("unipool", num_experts=[4, 6])
    with pytest.raises(UserError, match="pool is a mapping"):
        RoutedLoraConfig(method="unipool", pool={"by": "depth"})


def test_one_expert_in_a_pool_is_merged_exactly():
    model = adapted("soft", num_experts=1, pool={"by": "shape"}).eval()
    with torch.no_grad():
        expected = model(**batch()).logits
        merged = model.merge_and_unload()
        torch.testing.assert_close(merged(**batch()).logits, expected, rtol=1e-4, atol=1e-5)


def test_a_recurrent_router_treats_tokens_alike():
    scorers = [RecurrentScorer(6, 4, width=5) for _ in range(3)]
    for scorer in scorers[1:]:
        scorer.unit = scorers[0].unit
    inputs = [torch.randn(7, 6, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    order = torch.randperm(7, generator=torch.Generator().manual_seed(9))

    def through(tokens):
        context, found = RouteContext(), []
        for number, (scorer, x) in enumerate(zip(scorers, tokens, strict=True)):
            context.enter_site("default", str(number))
            found.append(scorer(x, context, None))
        return found

    plain, permuted = through(inputs), through([x[order] for x in inputs])
    for one, other in zip(plain, permuted, strict=True):
        torch.testing.assert_close(other, one[order])
    alone = through([torch.zeros_like(inputs[0]), *inputs[1:]])
    assert not torch.allclose(alone[2], plain[2])  # the last layer knows what the first saw


def test_the_gate_decides_for_all_layers_before_the_first():
    model = built("read_me").eval()
    inputs = batch()
    known = early_experts(model, inputs["input_ids"], inputs["attention_mask"])
    with torch.no_grad(), model.base_model.record():
        model(**inputs)
    records = model.base_model.hooks.session.context.records.values()
    assert len(records) == 8
    for record in records:
        assert torch.equal(record.selected, known.flatten(0, 1))
    assert known.sum(dim=-1).eq(1).all() and len(known.flatten(0, 1).unique(dim=0)) > 1


def test_the_gate_reads_no_padding_and_nothing_to_come():
    model = built("read_me").eval()
    ids = batch()["input_ids"][1:]
    whole = early_experts(model, ids)
    assert torch.equal(early_experts(model, ids[:, :4]), whole[:, :4])
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), ids], dim=1)
    found = early_experts(model, padded, torch.tensor([[0] * 3 + [1] * ids.shape[1]]))
    assert torch.equal(found[:, 3:], whole)


def test_the_gate_says_what_it_cannot_read():
    model = built("read_me").eval()
    with pytest.raises(UserError, match="use_cache=False"):
        model.generate(**{k: v for k, v in batch().items() if k != "labels"}, max_new_tokens=2)
    ids = model.generate(input_ids=batch()["input_ids"], max_new_tokens=2, use_cache=False)
    assert ids.shape[1] > batch()["input_ids"].shape[1]
    with pytest.raises(UserError, match="lower its width"):
        built("read_me", scorer={"name": "pre_gate", "width": 64})(**batch())
    with pytest.raises(UserError, match="has no pre-gate"):
        early_experts(built("rmoe"), batch()["input_ids"])


@pytest.mark.parametrize("method", METHODS)
def test_half_precision_leaves_routers_in_float32(method):
    model = built(method).train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(**batch()).loss + model.base_model.aux_loss()
    loss.backward()
    records = model.base_model.hooks.session.context.records.values()
    assert {record.logits.dtype for record in records} == {torch.float32}
    assert all(value.isfinite().all() for value in adapter_gradients(model).values())


@pytest.mark.slow
@pytest.mark.parametrize("method", ["unipool", "rmoe", "read_me"])
def test_methods_compile_whole(method, monkeypatch):
    monkeypatch.setattr("tests.tuner.test_compile.adapted", lambda name, **o: built(name, **o))
    torch._dynamo.reset()
    same_in_training(method)
    same_in_evaluation(method)
