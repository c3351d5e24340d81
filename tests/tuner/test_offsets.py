"""Offsets of the routing: zero is nothing, weights stay, the block ends, fitting helps, steering steers."""

import pytest
import torch

from moe_adapt.errors import UserError
from moe_adapt.evaluation.trace.contrast import expert_contrast
from moe_adapt.evaluation.trace.use import expert_use
from moe_adapt.tuner.model import adapted_layers
from moe_adapt.tuner.offsets import fit_offsets, routing_offsets, steering_offsets
from moe_adapt.tuner.tracing import TraceRecorder
from tests.tuner.tiny import adapted, batch


def logits(model):
    with torch.no_grad():
        return model.eval()(**batch()).logits


def zeros(model):
    return {
        layer.site: torch.zeros(layer.specs["default"].num_experts)
        for layer in adapted_layers(model.base_model.model)
    }


def hashed(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("method", ["top_k", "dynmole", "adamoe", "soft", "condenser", "cosine"])
def test_offsets_of_zero_change_no_bit_and_others_do(method):
    model = adapted(method, num_experts=4)
    before = logits(model)
    with routing_offsets(model.base_model, zeros(model)):
        assert torch.equal(logits(model), before)
    pushed = {site: torch.tensor([0.0, 0.0, 0.0, 9.0]) for site in zeros(model)}
    with routing_offsets(model.base_model, pushed):
        assert not torch.equal(logits(model), before)
    assert torch.equal(logits(model), before)


def test_an_offset_is_what_the_stored_one_is():
    model, stored = adapted("top_k", num_experts=4), adapted("top_k", num_experts=4, modifiers=["offset"])
    offset = torch.tensor([0.5, -1.0, 0.0, 2.0])
    for own, other in zip(
        adapted_layers(model.base_model.model), adapted_layers(stored.base_model.model), strict=True
    ):
        own.set_experts("default", *other.factors("default"), set())
        rows = other.routers["default"].tensors(other)["scorer.weight"]
        own.routers["default"].tensors(own)["scorer.weight"].data.copy_(rows)
        other.routers["default"].tensors(other)["modifiers.0.offset"].copy_(offset)
    with routing_offsets(model.base_model, {site: offset for site in zeros(model)}):
        torch.testing.assert_close(logits(model), logits(stored))


def test_zero_steps_are_zero_and_fitting_lowers_the_loss_but_moves_no_weight():
    model = adapted("soft", num_experts=4)
    model.eval()
    state, trainable = hashed(model), [p.requires_grad for p in model.parameters()]

    def loss():
        return model(**batch()).loss

    assert all(not offset.any() for offset in fit_offsets(model.base_model, loss, steps=0).values())
    fitted = fit_offsets(model.base_model, loss, steps=10, lr=0.3)
    with torch.no_grad():
        before = loss()
        with routing_offsets(model.base_model, fitted):
            assert loss() < before - 1e-4
        assert loss() == before
    after = hashed(model)
    assert all(torch.equal(after[name], tensor) for name, tensor in state.items())
    assert [p.requires_grad for p in model.parameters()] == trainable
    assert all(p.grad is None for p in model.parameters())
    small = fit_offsets(model.base_model, loss, steps=10, lr=0.3, penalty=100.0)
    assert sum(o.norm() for o in small.values()) < sum(o.norm() for o in fitted.values())


def test_steering_uses_what_the_contrast_favours():
    model = adapted("top_k", num_experts=4)

    def trace(rows, offsets):
        recorder = TraceRecorder(model.base_model)
        with routing_offsets(model.base_model, offsets), recorder.forward(rows):
            model.eval()(input_ids=rows)
        return recorder.trace()

    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randint(low, low + 30, (6, 8), generator=generator) for low in (1, 31))
    contrast = expert_contrast(trace(first, {}), trace(second, {}))
    assert steering_offsets(contrast, 0.0).keys() == contrast.keys()
    assert all(not offset.any() for offset in steering_offsets(contrast, 0.0).values())
    (site,) = steering_offsets(contrast, 3.0, sites=1)
    plain, steered = trace(second, {}), trace(second, steering_offsets(contrast, 3.0, sites=1))
    favoured = int(contrast[site].argmax())
    assert expert_use(steered)[site][favoured] > expert_use(plain)[site][favoured]
    before = list(contrast)[: list(contrast).index(site)]
    for other in before:
        assert torch.equal(expert_use(steered)[other], expert_use(plain)[other])


def test_bad_input_is_one_sentence():
    model = adapted("top_k", num_experts=4)
    with (
        pytest.raises(UserError, match="no adapted layer 'nowhere'"),
        routing_offsets(model.base_model, {"nowhere": torch.zeros(4)}),
    ):
        pass
    site = next(iter(zeros(model)))
    with (
        pytest.raises(UserError, match="has 4 experts"),
        routing_offsets(model.base_model, {site: torch.zeros(3)}),
    ):
        pass
    with pytest.raises(UserError, match="0 or more"):
        fit_offsets(model.base_model, lambda: model(**batch()).loss, steps=-1)
    with pytest.raises(UserError, match="finite"):
        fit_offsets(model.base_model, lambda: torch.tensor(float("nan")), steps=1)
    with pytest.raises(UserError, match="does not depend on the routing"):
        fit_offsets(model.base_model, lambda: torch.zeros((), requires_grad=True) * 1, steps=1)
    with pytest.raises(UserError, match="at least one site"):
        steering_offsets({}, 1.0, sites=0)
