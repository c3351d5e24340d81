"""Merging down by use: copies exactly, everything kept changes nothing, groups per site, bad input."""

import pytest
import torch

from moe_adapt.errors import UserError
from moe_adapt.tuner import merge_to
from moe_adapt.tuner.model import adapted_layers
from tests.tuner.tiny import adapted, batch


def logits(model):
    return model.eval()(**batch()).logits


def used(model, values):
    return {layer.site: torch.tensor(values) for layer in adapted_layers(model.base_model.model)}


def test_keeping_all_changes_nothing():
    model = adapted("top_k", num_experts=4)
    before = logits(model)
    assert merge_to(model.base_model, 4, used(model, [0.4, 0.3, 0.2, 0.1])) == {}
    assert torch.equal(logits(model), before)


def test_copies_in_another_gauge_are_found_and_merged_exactly():
    model = adapted("soft", num_experts=4)
    turn = torch.tensor([[1.0, 2.0], [0.0, 1.0]])
    for layer in adapted_layers(model.base_model.model):
        a, b = layer.factors("default")
        a, b = a.clone(), b.clone()
        rank = a.shape[1]
        gauge = torch.eye(rank)
        gauge[:2, :2] = turn
        for copy, original in ((2, 0), (3, 1)):
            a[copy], b[:, copy] = gauge @ a[original], b[:, original] @ torch.linalg.inv(gauge)
        layer.set_experts("default", a, b, set())
        rows = layer.moe_adapt_router__scorer__weight["default"]
        with torch.no_grad():
            rows[2:] = rows[:2]
    before = logits(model)
    errors = merge_to(model.base_model, 2, used(model, [0.4, 0.4, 0.1, 0.1]))
    torch.testing.assert_close(logits(model), before, rtol=1e-4, atol=1e-5)
    assert all(error < 1e-3 for site in errors.values() for error in site.values())


def test_sites_keep_their_own_most_used_experts():
    model = adapted("soft", num_experts=3)
    sites = list(adapted_layers(model.base_model.model))
    use = {layer.site: torch.eye(3)[number % 3] for number, layer in enumerate(sites)}
    merge_to(model.base_model, 1, use)
    names = [layer.specs["default"].names for layer in adapted_layers(model.base_model.model)]
    assert names == [[str(number % 3)] for number in range(len(sites))]
    assert logits(model).isfinite().all()


def test_an_unused_expert_has_no_weight():
    model = adapted("soft", num_experts=2)
    layer = next(iter(adapted_layers(model.base_model.model)))
    kept = torch.einsum("oer,erd->eod", *reversed(layer.factors("default")))[1]
    merge_to(model.base_model, 1, used(model, [0.0, 1.0]))
    a, b = layer.factors("default")
    torch.testing.assert_close(b[:, 0] @ a[0], kept, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("values", [[1.0, 1.0], [1.0, -1.0, 0.0]])
def test_use_is_asked_for_every_expert(values):
    model = adapted("soft", num_experts=3)
    with pytest.raises(UserError, match="give the use of the 3 experts"):
        merge_to(model.base_model, 2, used(model, values))
    with pytest.raises(UserError, match="give the use of the 3 experts"):
        merge_to(model.base_model, 2, {})
