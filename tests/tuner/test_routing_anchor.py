"""The routing anchor: where it is taken, what it holds, and that edits and files carry it."""

import peft
import pytest
import torch

from moe_adapt.errors import UserError
from moe_adapt.routing import RoutingAnchorLoss
from moe_adapt.tuner import add_experts, anchor_routing, prune_experts
from moe_adapt.tuner.model import adapted_layers
from tests.tuner.tiny import adapted, adapter_gradients, batch, llama

LOSS = {"name": "routing_anchor", "weight": 1.0}


def anchored(method="soft", blank=True, **options):
    model = adapted(method, num_experts=3, aux_losses=[{**LOSS, **options}])
    for layer in adapted_layers(model) if blank else ():
        layer.moe_adapt_router__anchor["default"].fill_(torch.nan)
    return model


def loss(model, **inputs):
    model.train()(**{**batch(), **inputs})
    return float(model.base_model.aux_loss().detach())


def move_routers(model, amount=0.5):
    with torch.no_grad():
        for layer in adapted_layers(model):
            layer.moe_adapt_router__scorer__weight["default"][0] += amount


def test_it_is_zero_at_the_start_and_pulls_moved_routers_back():
    model = anchored()
    assert loss(model) == pytest.approx(0, abs=1e-7)
    start = {
        layer.site: layer.moe_adapt_router__scorer__weight["default"].clone()
        for layer in adapted_layers(model)
    }
    move_routers(model)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
    values = []
    for _ in range(5):
        output = model.train()(**batch())
        value = model.base_model.aux_loss()
        optimizer.zero_grad()
        (0 * output.loss + value).backward()
        gradients = adapter_gradients(model)
        optimizer.step()
        values.append(float(value.detach()))
    assert values[-1] < 0.5 * values[0]
    assert all(gradient.any() for name, gradient in gradients.items() if "router" in name)
    for layer in adapted_layers(model):
        assert torch.equal(layer.moe_adapt_router__anchor["default"], start[layer.site])


def test_the_value_is_the_divergence_on_unpadded_tokens():
    model = anchored()
    loss(model)
    move_routers(model)
    value = loss(model)
    parts = []
    for record in model.base_model.hooks.session.context.records.values():
        then, now = (tensor[record.mask].log_softmax(-1) for tensor in (record.anchor, record.logits))
        parts.append((then.exp() * (then - now)).sum(-1).mean())
    assert value == pytest.approx(float(torch.stack(parts).mean()), rel=1e-5)


def test_only_protected_domains_are_held():
    model = anchored(domains=[1])
    ids = torch.tensor([0, 1])
    loss(model, domain_ids=ids)
    move_routers(model)
    held = loss(model, domain_ids=ids)
    assert held > 0 and loss(model, domain_ids=torch.tensor([0, 2])) == 0
    alone = {name: value[1:] for name, value in batch().items()}
    assert held == pytest.approx(loss(model, **alone, domain_ids=ids[1:]), rel=1e-4)
    with pytest.raises(UserError, match="without domain_ids"):
        loss(model)


def test_edits_and_files_carry_it(tmp_path):
    model = anchored()
    loss(model)
    before = {
        layer.site: layer.moe_adapt_router__anchor["default"].clone() for layer in adapted_layers(model)
    }
    move_routers(model)
    prune_experts(model.base_model, [1])
    add_experts(model.base_model)
    loss(model)
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(llama(), tmp_path, adapter_name="other")
    for layer in adapted_layers(loaded):
        anchor = layer.moe_adapt_router__anchor["other"]
        assert torch.equal(anchor[:2], before[layer.site][[0, 2]])
        assert torch.equal(anchor[2], layer.moe_adapt_router__scorer__weight["other"][2])


def test_it_can_be_taken_anew():
    model = anchored()
    loss(model)
    move_routers(model)
    assert loss(model) > 0.01
    anchor_routing(model)
    assert loss(model) == pytest.approx(0, abs=1e-7)
    with pytest.raises(UserError, match="has an anchor"):
        anchor_routing(adapted("soft"))


def test_routers_without_rows_and_empty_domains_are_refused():
    with pytest.raises(UserError, match="linear scorer"):
        adapted("cosine", aux_losses=[LOSS])
    with pytest.raises(UserError, match="no domain"):
        RoutingAnchorLoss(domains=[])
