"""Fewer and more experts by use: identities, copies, sites of their own, frozen experts, bad input."""

import pytest
import torch

from moe_adapt.errors import UserError
from moe_adapt.tuner import duplicate_to, prune_to, rehome_to
from moe_adapt.tuner.edit import duplicate_experts, prune_experts
from moe_adapt.tuner.model import adapted_layers
from moe_adapt.tuner.resize import keep_above
from tests.tuner.test_merge_to import logits, used
from tests.tuner.tiny import adapted


def names(model):
    return [layer.specs["default"].names for layer in adapted_layers(model.base_model.model)]


@pytest.mark.parametrize("smaller", [prune_to, rehome_to])
def test_keeping_all_changes_no_bit(smaller):
    model = adapted("top_k", num_experts=4)
    before = logits(model)
    assert not smaller(model.base_model, 4, used(model, [0.4, 0.3, 0.2, 0.1]))
    assert torch.equal(logits(model), before)


def test_the_least_used_are_pruned():
    model, by_name = (adapted("top_k", num_experts=4) for _ in range(2))
    prune_to(model.base_model, 2, used(model, [3.0, 1.0, 2.0, 0.0]))
    prune_experts(by_name.base_model, ["1", "3"])
    assert names(model) == [["0", "2"]] * len(names(model))
    assert torch.equal(logits(model), logits(by_name))


def test_copies_come_home_exactly():
    model = adapted("uniform_dense", num_experts=4)
    for layer in adapted_layers(model.base_model.model):
        a, b = (factor.clone() for factor in layer.factors("default"))
        a[2:], b[:, 2:] = a[:2], b[:, :2]
        layer.set_experts("default", a, b, set())
    before = logits(model)
    errors = rehome_to(model.base_model, 2, used(model, [2.0, 2.0, 1.0, 1.0]), alike=0.9)
    torch.testing.assert_close(logits(model), before, rtol=1e-4, atol=1e-5)
    assert all(error < 1e-5 for site in errors.values() for error in site.values())
    assert {tuple(site) for site in errors.values()} == {("0", "1")}


def test_frozen_experts_stay_frozen_unless_a_learning_one_joins():
    model = adapted("soft", num_experts=3)
    model.base_model.freeze_experts([0, 1])
    layer = next(iter(adapted_layers(model.base_model.model)))
    a, b = (factor.clone() for factor in layer.factors("default"))
    a[2], b[:, 2] = a[1], b[:, 1]
    layer.set_experts("default", a, b, {0, 1})
    kept = layer.factors("default")[0][0].clone()
    rehome_to(model.base_model, 2, used(model, [2.0, 2.0, 1.0]), alike=0.9)
    assert layer.frozen_experts("default") == {0}
    assert torch.equal(layer.factors("default")[0][0], kept)
    others = list(adapted_layers(model.base_model.model))[1:]
    assert all(other.frozen_experts("default") == {0, 1} for other in others)


def test_sites_follow_their_own_use():
    model = adapted("soft", num_experts=3)
    sites = list(adapted_layers(model.base_model.model))
    use = {layer.site: torch.eye(3)[number % 3] for number, layer in enumerate(sites)}
    prune_to(model.base_model, keep_above(use, 0.5), use)
    assert names(model) == [[str(number % 3)] for number in range(len(sites))]
    assert logits(model).isfinite().all()


def test_copies_of_the_most_useful_leave_a_dense_mixture_as_it_was():
    model = adapted("soft", num_experts=3)
    before = logits(model)
    sites = list(adapted_layers(model.base_model.model))
    use = {layer.site: torch.eye(3)[number % 3] for number, layer in enumerate(sites)}
    new = duplicate_to(model.base_model, 5, use, noise=0.0)
    torch.testing.assert_close(logits(model), before, rtol=1e-4, atol=1e-5)
    assert new == ["3", "4"]
    for number, layer in enumerate(sites):
        assert layer.specs["default"].lineage[3:] == [[str(number % 3)]] * 2


def test_twin_exclusive_copies_leave_top_k_as_it_was():
    model = adapted("top_k", num_experts=4)
    before = logits(model)
    duplicate_to(model.base_model, 6, used(model, [1.0, 4.0, 2.0, 3.0]), noise=0.0, twin_exclusive=True)
    torch.testing.assert_close(logits(model), before, rtol=1e-4, atol=1e-5)


def test_bad_input_changes_nothing():
    model = adapted("top_k", num_experts=3)
    before = logits(model)
    use = used(model, [3.0, 2.0, 1.0])
    with pytest.raises(UserError, match="3 experts already"):
        duplicate_to(model.base_model, 2, use)
    with pytest.raises(UserError, match="1 to 3 can stay"):
        prune_to(model.base_model, 4, use)
    with pytest.raises(UserError, match="given per site, but not for"):
        prune_experts(model.base_model, {})
    first, *rest = use
    with pytest.raises(UserError, match="equally many copies"):
        duplicate_experts(model.base_model, {first: [0], **{site: [] for site in rest}}, twin_exclusive=True)
    with pytest.raises(UserError, match="has experts 0 to 2"):
        duplicate_experts(model.base_model, {site: [5] for site in use}, twin_exclusive=True)
    shared = adapted("hydralora", num_experts=3)
    with pytest.raises(UserError, match="share a down-projection"):
        rehome_to(shared.base_model, 2, used(shared, [3.0, 2.0, 1.0]))
    assert torch.equal(logits(model), before)
    assert model.peft_config["default"].modifiers == []
