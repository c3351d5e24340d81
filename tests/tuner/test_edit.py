"""Editing the pool of a whole adapter: outputs, frozen bits, router rows, optimizers, files."""

import warnings

import peft
import pytest
import torch

from moe_adapt.errors import UserError
from moe_adapt.evaluation.trace.compare import compare_traces
from moe_adapt.tuner import (
    add_experts,
    duplicate_experts,
    freeze_experts,
    merge_experts,
    prune_experts,
)
from moe_adapt.tuner.model import adapted_layers
from moe_adapt.tuner.tracing import TraceRecorder
from tests.tuner.tiny import adapted, batch, llama, randomize


def logits(model):
    return model.eval()(**batch()).logits


def decisions(model):
    with model.base_model.record():
        model.eval()(**batch())
    return {key[1]: record for key, record in model.base_model.hooks.session.context.records.items()}


def layer_of(model):
    return model.base_model.model.model.layers[0].mlp.gate_proj


def router_rows(model):
    return layer_of(model).moe_adapt_router__scorer__weight["default"]


def step(model, optimizer):
    model.train()
    (model(**batch()).loss + model.base_model.aux_loss()).backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.fixture
def soft():
    return adapted("soft", num_experts=3)


def test_a_new_expert_leaves_old_logits_and_factors_alone(soft):
    before, factors = decisions(soft), layer_of(soft).factors("default")
    assert add_experts(soft.base_model, 2, uids=["news", "law"]) == ["news", "law"]
    after = decisions(soft)
    first = next(iter(before))
    assert torch.equal(after[first].logits[:, :3], before[first].logits)
    a, b = layer_of(soft).factors("default")
    assert torch.equal(a[:3], factors[0]) and torch.equal(b[:, :3], factors[1])
    assert not b[:, 3:].any()
    assert layer_of(soft).specs["default"].names == ["0", "1", "2", "news", "law"]


def test_freeze_the_old_and_learn_the_new(soft):
    freeze_experts(soft.base_model, [0, 1, 2])
    add_experts(soft.base_model)
    a, b = layer_of(soft).factors("default")
    optimizer = torch.optim.AdamW([p for p in soft.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    for _ in range(3):
        step(soft, optimizer)
    new_a, new_b = layer_of(soft).factors("default")
    assert torch.equal(new_a[:3], a[:3]) and torch.equal(new_b[:, :3], b[:, :3])
    assert not torch.equal(new_b[:, 3], b[:, 3])
    assert layer_of(soft).frozen_experts("default") == {0, 1, 2}


@pytest.mark.parametrize("experts", [[0, 1, 2], [1], [0, 0, 2]])
def test_duplicates_keep_a_dense_mixture(soft, experts):
    expected = logits(soft)
    duplicate_experts(soft.base_model, experts, noise=0.0)
    torch.testing.assert_close(logits(soft), expected, rtol=1e-5, atol=1e-5)


def test_duplicates_change_top_k_unless_twins_exclude_each_other():
    model = adapted("top_k", num_experts=4)
    expected = logits(model)
    with pytest.warns(UserWarning, match="twin_exclusive"):
        duplicate_experts(model.base_model, [0, 1, 2, 3], noise=0.0)
    assert not torch.allclose(logits(model), expected, atol=1e-3)
    for experts in ([0, 1, 2, 3], [1], [2, 2]):
        model = adapted("top_k", num_experts=4)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            duplicate_experts(model.base_model, experts, noise=0.0, twin_exclusive=True)
        torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-5)
        add_experts(model.base_model)
        twins = layer_of(model).moe_adapt_router__modifiers__0__twins["default"].tolist()
        assert twins.count(twins[-1]) == 1


def test_noise_parts_a_copy_from_its_original(soft):
    duplicate_experts(soft.base_model, [0])
    rows = router_rows(soft)
    assert not torch.equal(rows[0], rows[3])
    torch.testing.assert_close(rows[0], rows[3], rtol=0, atol=0.1)


def test_a_frozen_original_gets_a_trainable_copy(soft):
    duplicate_experts(soft.base_model, ["1"], freeze_originals=True, uids=["task2"])
    spec = layer_of(soft).specs["default"]
    assert layer_of(soft).frozen_experts("default") == {1}
    assert spec.names == ["0", "1", "2", "task2"]


@pytest.mark.parametrize("method", ["concat", "svd"])
def test_merging_the_copies_again_is_the_identity(soft, method):
    expected = logits(soft)
    names = duplicate_experts(soft.base_model, [1], noise=0.0)
    errors = merge_experts(soft.base_model, [["1", names[0]]], method=method)
    torch.testing.assert_close(logits(soft), expected, rtol=1e-4, atol=1e-4)
    assert max(max(site.values()) for site in errors.values()) < 1e-5
    assert layer_of(soft).specs["default"].r == (8 if method == "concat" else 4)


def test_pruning_drops_rows_and_factors(soft):
    rows, (a, _) = router_rows(soft).clone(), layer_of(soft).factors("default")
    prune_experts(soft.base_model, [1])
    assert torch.equal(router_rows(soft), rows[[0, 2]])
    assert torch.equal(layer_of(soft).factors("default")[0], a[[0, 2]])
    assert layer_of(soft).specs["default"].names == ["0", "2"]


def test_unknown_names_and_numbers_are_refused_before_anything_changes(soft):
    add_experts(soft.base_model, uids=["medicine"])
    for edit in (prune_experts, duplicate_experts, freeze_experts):
        with pytest.raises(UserError, match="Did you mean 'medicine'"):
            edit(soft.base_model, ["medicin"])
        with pytest.raises(UserError, match="experts 0 to 3"):
            edit(soft.base_model, [7])
    with pytest.raises(UserError, match="new names"):
        add_experts(soft.base_model, uids=["medicine"])
    with pytest.raises(UserError, match="disjoint"):
        merge_experts(soft.base_model, [[0, 1], [1, 2]])
    assert layer_of(soft).specs["default"].num_experts == 4


@pytest.mark.parametrize("name", ["cosine", "k_means", "adamoe", "router_frozen", "uniform_dense", "dynmole"])
def test_every_router_follows(name, tmp_path):
    model = adapted(name, num_experts=4)
    model(**batch())
    add_experts(model.base_model, 2)
    prune_experts(model.base_model, [0])
    randomize(model)
    expected = logits(model)
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(llama(), tmp_path, adapter_name="other")
    assert torch.equal(logits(loaded), expected)
    assert next(iter(adapted_layers(loaded))).specs["other"].names[-2:] == ["4", "5"]


def test_an_edited_pool_with_new_modifiers_reloads(soft, tmp_path):
    duplicate_experts(soft.base_model, [1], twin_exclusive=True)
    randomized = logits(soft)
    soft.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(llama(), tmp_path, adapter_name="other")
    assert torch.equal(logits(loaded), randomized)


def test_an_optimizer_goes_on_as_if_nothing_had_been_added():
    plain, grown = adapted("soft", num_experts=3), adapted("soft", num_experts=3)
    optimizers = [
        torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        for model in (plain, grown)
    ]
    for model, optimizer in zip((plain, grown), optimizers, strict=True):
        step(model, optimizer)
    duplicate_experts(grown.base_model, [0, 1, 2], noise=0.0, optimizer=optimizers[1])
    held = {id(p) for group in optimizers[1].param_groups for p in group["params"]}
    assert held == {id(p) for p in grown.parameters() if p.requires_grad}
    weight = layer_of(grown).moe_adapt_A["default"]
    moment = optimizers[1].state[weight]["exp_avg"]
    assert torch.equal(moment[:3], moment[3:])
    assert torch.equal(moment[:3], optimizers[0].state[layer_of(plain).moe_adapt_A["default"]]["exp_avg"])
    freeze_experts(grown.base_model, [3, 4, 5], optimizer=optimizers[1])
    moment = optimizers[1].state[layer_of(grown).moe_adapt_B["default"]]["exp_avg"]
    assert torch.equal(moment, optimizers[0].state[layer_of(plain).moe_adapt_B["default"]]["exp_avg"])
    prune_experts(grown.base_model, [3, 4, 5], optimizer=optimizers[1])
    for model, optimizer in zip((plain, grown), optimizers, strict=True):
        step(model, optimizer)
    torch.testing.assert_close(logits(grown), logits(plain))


@pytest.mark.parametrize(("mode", "factor"), [("reset", 0.0), ("scale", 0.5)])
def test_moments_of_copies(soft, mode, factor):
    optimizer = torch.optim.AdamW([p for p in soft.parameters() if p.requires_grad])
    step(soft, optimizer)
    duplicate_experts(soft.base_model, [2], optimizer=optimizer, optimizer_state=mode)
    moment = optimizer.state[layer_of(soft).moe_adapt_B["default"]]["exp_avg"]
    assert torch.equal(moment[:, 3], moment[:, 2] * factor)


def test_an_optimizer_of_other_parameters_is_refused(soft):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])
    with pytest.raises(UserError, match="build it"):
        add_experts(soft.base_model, optimizer=optimizer)


def deltas(layer):
    bank = layer.bank("default")
    return torch.stack([bank.delta_weight(expert) for expert in range(bank.num_experts)])


def test_experts_that_share_a_can_be_added_copied_pruned_and_merged(tmp_path):
    model = adapted("hydralora", num_experts=3, target_modules=["gate_proj", "down_proj"])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    step(model, optimizer)
    expected, before = logits(model), deltas(layer_of(model))
    duplicate_experts(model.base_model, [0], noise=0.0, optimizer=optimizer)
    torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-5)
    errors = merge_experts(model.base_model, [[1, 2]], [[0.25, 0.5]], optimizer=optimizer)
    prune_experts(model.base_model, ["3"], optimizer=optimizer)
    add_experts(model.base_model, optimizer=optimizer)
    after = deltas(layer_of(model))
    torch.testing.assert_close(after[1], 0.25 * before[1] + 0.5 * before[2])
    assert torch.equal(after[0], before[0]) and not after[2].any()
    assert set(errors[layer_of(model).site].values()) == {0.0}
    assert layer_of(model).moe_adapt_A["default"].shape[0] == 1
    step(model, optimizer)
    assert deltas(layer_of(model))[2].any()
    expected = logits(model)
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(llama(), tmp_path, adapter_name="other")
    assert torch.equal(logits(loaded), expected)
    for hold in (
        lambda: freeze_experts(model.base_model, [0]),
        lambda: duplicate_experts(model.base_model, [0], freeze_originals=True),
    ):
        with pytest.raises(UserError, match="shared_a"):
            hold()
    assert layer_of(model).specs["default"].names == ["0", "1", "4"]


def test_merged_experts_that_keep_their_rows_take_their_joint_share(soft, tmp_path):
    before, rows = decisions(soft), router_rows(soft).clone()
    optimizer = torch.optim.AdamW([p for p in soft.parameters() if p.requires_grad], lr=1e-2)
    merge_experts(soft.base_model, [[0, 2]], method="concat", router="rows", optimizer=optimizer)
    first = next(iter(before))
    after = decisions(soft)[first]
    old = before[first].gates
    torch.testing.assert_close(after.gates, torch.stack([old[:, 0] + old[:, 2], old[:, 1]], dim=-1))
    assert torch.equal(router_rows(soft), rows)
    assert layer_of(soft).specs["default"].rows == [0, 1, 0]
    step(soft, optimizer)
    assert not torch.equal(router_rows(soft)[2], rows[2])
    duplicate_experts(soft.base_model, [0], noise=0.0, optimizer=optimizer)
    prune_experts(soft.base_model, [1], optimizer=optimizer)
    add_experts(soft.base_model, optimizer=optimizer)
    assert layer_of(soft).specs["default"].rows == [0, 0, 1, 1, 2]
    step(soft, optimizer)
    expected = logits(soft)
    soft.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(llama(), tmp_path, adapter_name="other")
    assert torch.equal(logits(loaded), expected)


def test_merging_is_exact_where_the_members_are_equal_whatever_their_logits(soft):
    for layer in adapted_layers(soft):
        with torch.no_grad():
            layer.moe_adapt_A["default"][2] = layer.moe_adapt_A["default"][0]
            layer.moe_adapt_B["default"][:, 2] = layer.moe_adapt_B["default"][:, 0]
    expected = logits(soft)
    merge_experts(soft.base_model, [[0, 2]], router="rows")
    torch.testing.assert_close(logits(soft), expected, rtol=1e-4, atol=1e-4)


def test_routers_without_rows_of_their_own_cannot_keep_them():
    model = adapted("arrow", num_experts=3)
    with pytest.raises(UserError, match="computes its logits from the experts"):
        merge_experts(model.base_model, [[0, 1]], router="rows")
    with pytest.raises(UserError, match="'mean' or 'rows'"):
        merge_experts(model.base_model, [[0, 1]], router="row")
    assert layer_of(model).specs["default"].num_experts == 3


def trace_of(model):
    recorder = TraceRecorder(model.base_model)
    inputs = batch()
    with recorder.forward(inputs["input_ids"], inputs["attention_mask"]):
        model.eval()(**inputs)
    return recorder.trace()


def test_traces_follow_experts_through_edits(soft):
    before = trace_of(soft)
    duplicate_experts(soft.base_model, [1], noise=0.0)
    copied = trace_of(soft)
    merge_experts(soft.base_model, [[0, 2]], router="rows")
    merged = trace_of(soft)
    first = next(iter(compare_traces(before, merged).values()))  # later ones see what the merge has changed
    for found in [*compare_traces(before, copied).values(), first]:
        assert (found.top1, found.stability, found.leak) == (1, 1, 0)
        assert found.js < 1e-5 and found.load_js < 1e-6
    add_experts(soft.base_model)
    prune_experts(soft.base_model, [0])
    for found in compare_traces(merged, trace_of(soft)).values():
        assert found.stability == 0 and 0 < found.leak < 1
    spec = layer_of(soft).specs["default"]
    assert spec.lineage == [["1"], ["1"], ["4"]]


def test_a_number_never_names_two_experts(soft):
    add_experts(soft.base_model)
    prune_experts(soft.base_model, ["3"])
    assert add_experts(soft.base_model) == ["4"]


def test_groups_of_token_assignment_follow_edits():
    model = adapted("dymoe", num_experts=2, selector={"name": "top_k", "k": 1})
    for layer in adapted_layers(model):
        layer.moe_adapt_router__modifiers__0__expert_groups["default"].zero_()
    add_experts(model.base_model, 2)
    duplicate_experts(model.base_model, [2], twin_exclusive=True)
    merge_experts(model.base_model, [[0, 3]])
    groups = layer_of(model).moe_adapt_router__modifiers__0__expert_groups["default"]
    assert groups.tolist() == [0, 0, 1, 1]
