"""The auxiliary loss reaches every router, in every checkpointing mode, scaled as the loss is scaled."""

import peft
import pytest
import torch

from moe_adapt.tuner import ModelHooks, RoutedLoraConfig
from tests.tuner.tiny import adapted, adapter_gradients, batch, llama

CHECKPOINTING = [None, False, True]
LOSSES = [
    {"name": "entropy", "weight": 0.5},
    {"name": "load_balance", "weight": 0.3, "assignment": "probs", "scope": "global"},
    {"name": "z_loss", "weight": 0.1},
]


def double_model(checkpointing=None, **options):
    model = adapted("dynmole", aux_losses=LOSSES, **options).double().train()
    if checkpointing is not None:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": checkpointing})
        model.enable_input_require_grads()
    return model


def reference_gradients(scale=1.0):
    """Gradients with the auxiliary loss differentiated through the logits, without any carrier."""
    model = double_model()
    seen = []
    for name, module in model.named_modules():
        if hasattr(module, "routers"):
            module.register_forward_pre_hook(lambda layer, args, name=name: seen.append((layer, args[0])))
    total = model(**batch()).loss
    mask = batch()["attention_mask"].reshape(-1).bool()
    entropy, balance, z_loss = [], [], []
    pooled = []
    for layer, x in seen:
        weight = layer.routers["default"].tensors(layer)["scorer.weight"]
        logits = (x.reshape(-1, x.shape[-1]) @ weight.t())[mask]
        p = logits.softmax(-1)
        experts = p.shape[-1]
        highest = (1 - experts**-0.1) / 0.1
        entropy.append((((1 - (p**1.1).sum(-1)) / 0.1) / highest).mean())
        pooled.append(p.mean(0))
        z_loss.append(logits.logsumexp(-1).square().mean())
    mean = torch.stack(pooled).mean(0)
    balance = len(mean) * (mean * mean).sum()
    aux = 0.5 * torch.stack(entropy).mean() + 0.3 * balance + 0.1 * torch.stack(z_loss).mean()
    (scale * (total + aux)).backward()
    return aux.item(), adapter_gradients(model)


def test_gradients_equal_plain_autograd():
    value, expected = reference_gradients()
    model = double_model()
    loss = model(**batch()).loss
    aux = model.base_model.aux_loss()
    assert aux.item() == pytest.approx(value, rel=1e-10)
    (loss + aux).backward()
    gradients = adapter_gradients(model)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("checkpointing", CHECKPOINTING)
@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_checkpointing_and_loss_scale_do_not_change_it(checkpointing, scale):
    _, expected = reference_gradients(scale)
    model = double_model(checkpointing)
    ((model(**batch()).loss + model.base_model.aux_loss()) * scale).backward()
    gradients = adapter_gradients(model)
    for name in expected:
        torch.testing.assert_close(gradients[name], expected[name], rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("checkpointing", CHECKPOINTING)
def test_the_auxiliary_loss_alone_reaches_every_router(checkpointing):
    model = double_model(checkpointing)
    out = model(**batch())
    (0 * out.loss + model.base_model.aux_loss()).backward()
    routers = model.base_model.parameter_groups()["router"]
    assert len(routers) == 8
    assert all(parameter.grad.abs().sum() > 0 for _, parameter in routers)


@pytest.mark.parametrize("checkpointing", CHECKPOINTING)
def test_accumulation_adds_up(checkpointing):
    model = double_model(checkpointing)
    for _ in range(4):
        ((model(**batch()).loss + model.base_model.aux_loss()) / 4).backward()
    _, expected = reference_gradients()
    for name, gradient in adapter_gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("checkpointing", CHECKPOINTING)
def test_recomputation_leaves_no_second_record_and_no_new_noise(checkpointing):
    model = double_model(checkpointing, modifiers=[{"name": "gaussian_noise", "std": 3.0}])
    torch.manual_seed(0)
    loss = model(**batch()).loss + model.base_model.aux_loss()
    context = model.base_model.hooks.session.context
    records = dict(context.records)
    assert len(records) == 8
    loss.backward()
    assert context.records == records
    plain = double_model(modifiers=[{"name": "gaussian_noise", "std": 3.0}])
    torch.manual_seed(0)
    (plain(**batch()).loss + plain.base_model.aux_loss()).backward()
    expected = adapter_gradients(plain)
    for name, gradient in adapter_gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-6, atol=1e-10)


def test_a_loss_that_was_never_added_is_an_error():
    model = adapted().train()
    loss = model(**batch()).loss
    model.base_model.aux_loss()
    with pytest.raises(RuntimeError, match="not part of the loss"):
        loss.backward()


def test_leaving_it_out_altogether_is_legal():
    model = adapted().train()
    model(**batch()).loss.backward()


def test_calling_it_twice_or_too_early_is_an_error():
    model = adapted().train()
    with pytest.raises(RuntimeError, match="training mode first"):
        model.base_model.aux_loss()
    model(**batch())
    model.base_model.aux_loss()
    with pytest.raises(RuntimeError, match="already called"):
        model.base_model.aux_loss()
    model.eval()(**batch())
    with pytest.raises(RuntimeError, match="training mode first"):
        model.base_model.aux_loss()


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_two_forwards_before_a_backward_are_right(use_reentrant):
    model = double_model(use_reentrant)
    loss = model(**batch()).loss + model.base_model.aux_loss()
    (loss + model(**batch()).loss + model.base_model.aux_loss()).backward()
    _, expected = reference_gradients(scale=2.0)
    for name, gradient in adapter_gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-6, atol=1e-10)


def test_no_losses_is_zero_and_adds_no_gradient():
    model = adapted("soft").train()
    loss = model(**batch()).loss
    aux = model.base_model.aux_loss()
    assert aux.item() == 0
    (loss + aux).backward()
    assert model.base_model.aux_losses() == {}


def test_parts_are_reported_by_name():
    model = adapted().train()
    model(**batch())
    total = model.base_model.aux_loss()
    parts = model.base_model.aux_losses()
    assert set(parts) == {"entropy", "load_balance"}
    assert sum(parts.values()).item() == pytest.approx(total.item())


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_statistic_and_no_loss(side):
    model = adapted("dynmole").train()
    ids = batch(left_padding=0)["input_ids"]
    model(input_ids=ids, attention_mask=torch.ones_like(ids))
    loss, stats = model.base_model.aux_loss().item(), model.base_model.routing_stats()
    pad = torch.zeros(2, 4, dtype=torch.long)
    padded = torch.cat([pad, ids] if side == "left" else [ids, pad], dim=1)
    mask = (padded != 0).long()
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    model(input_ids=padded, attention_mask=mask, position_ids=positions)
    assert model.base_model.aux_loss().item() == pytest.approx(loss, rel=1e-5)
    for site, stat in model.base_model.routing_stats().items():
        assert stat.tokens == stats[site].tokens == 14
        torch.testing.assert_close(stat.load, stats[site].load)
        assert stat.entropy == pytest.approx(stats[site].entropy, rel=1e-5)


def test_evaluation_is_recorded_on_request_only():
    model = adapted().eval()
    model(**batch())
    with pytest.raises(RuntimeError, match="no forward was recorded"):
        model.base_model.routing_stats()
    with model.base_model.record():
        model(**batch())
    assert len(model.base_model.routing_stats()) == 8


def test_trainer_flag_adds_it_to_the_loss():
    model = adapted().train()
    task = model(**batch()).loss
    expected = task + model.base_model.aux_loss()
    model.base_model.add_aux_to_loss = True
    torch.testing.assert_close(model(**batch()).loss, expected)
    assert RoutedLoraConfig().method == "top_k"


def test_a_model_without_a_tuner_around_it_has_it_too():
    config = RoutedLoraConfig(method="top_k", target_modules=["q_proj"], aux_losses=LOSSES[2:])
    base = peft.inject_adapter_in_model(config, llama())  # what `add_adapter` of transformers does
    (hooks,) = ModelHooks.find(base)
    out = base.train()(**batch())
    (0 * out.loss + hooks.aux_loss()).backward()
    routers = [p.grad for name, p in base.named_parameters() if "router" in name and p.requires_grad]
    assert routers and all(gradient is not None and gradient.any() for gradient in routers)
