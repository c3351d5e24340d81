"""A complement beside a frozen pool: nothing at first, all that learns afterwards, saved and loaded."""

import pytest
import torch

from moe_adapt.errors import UserError
from moe_adapt.hub.load import load_adapter
from moe_adapt.routing.base import Logits
from moe_adapt.routing.context import RouteContext
from moe_adapt.routing.selectors.complement import ComplementSelector
from moe_adapt.routing.selectors.null_experts import NullExpertsSelector
from moe_adapt.routing.selectors.top_k import TopKSelector
from moe_adapt.tuner.complement import add_complement
from moe_adapt.tuner.model import adapted_layers
from tests.tuner.tiny import adapted, batch, llama


def logits(model):
    with torch.no_grad():
        return model.eval()(**batch()).logits


@pytest.mark.parametrize("method", ["top_k", "soft", "adamoe", "dynmole"])
def test_a_new_complement_changes_nothing_and_alone_learns(method):
    model = adapted(method, num_experts=4)
    before = logits(model)
    add_complement(model.base_model)
    torch.testing.assert_close(logits(model), before, rtol=1e-5, atol=1e-6)
    model.train()
    model(**batch()).loss.backward()
    for layer in adapted_layers(model.base_model.model):
        assert layer.frozen_experts("default") == {0, 1, 2, 3}
        assert layer.specs["default"].names[-1] == "complement"
        assert layer.moe_adapt_B["default"].shape[1] == 1 and layer.moe_adapt_B["default"].grad.any()


def test_gates_are_those_of_the_inner_selector_and_one():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(6, 5, generator=generator)
    ctx = RouteContext()
    inner = TopKSelector(2)(Logits(z[:, :4], z[:, :4]), ctx)
    found = ComplementSelector({"name": "top_k", "k": 2}, share=0.5)(Logits(z, z), ctx)
    assert torch.equal(found.gates[:, :4], inner.gates) and (found.gates[:, 4] == 0.5).all()
    assert found.selected[:, 4].all() and torch.equal(found.selected[:, :4], inner.selected)
    nulls = NullExpertsSelector(k=2, nulls=2)
    wide = torch.cat([z[:, :3], z[:, 4:], z[:, :1]], dim=1)
    own = nulls(Logits(wide, wide), ctx)
    beside = torch.cat([z[:, :3], torch.full((6, 1), 9.0), wide[:, 3:]], dim=1)
    found = ComplementSelector({"name": "null_experts", "k": 2, "nulls": 2})(Logits(beside, beside), ctx)
    assert torch.equal(torch.cat([found.gates[:, :3], found.gates[:, 4:]], dim=1), own.gates)


def test_it_is_saved_and_loaded(tmp_path):
    model = adapted("top_k", num_experts=3)
    add_complement(model.base_model, uid="ours")
    with torch.no_grad():
        for layer in adapted_layers(model.base_model.model):
            layer.moe_adapt_B["default"].normal_()
    model.save_pretrained(str(tmp_path))
    assert torch.equal(logits(load_adapter(llama(), tmp_path)), logits(model))


def test_what_cannot_be_done_is_refused_before_anything_changes():
    model = adapted("top_k", num_experts=2)
    with pytest.raises(UserError, match="need as many new names"):
        add_complement(model.base_model, uid="0")
    shared = adapted("hydralora", num_experts=2)
    with pytest.raises(UserError, match="share a down-projection"):
        add_complement(shared.base_model)
    assert "complement" not in str(shared.peft_config["default"].selector)
    with pytest.raises(UserError, match="another expert beside it"):
        ComplementSelector().check(1)
