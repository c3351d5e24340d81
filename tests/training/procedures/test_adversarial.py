"""AdvMoE: attacks on answers and routers, experts and routers stepped in turns."""

import pytest
import torch

from moe_adapt.checks import CheckedClassifier, check_procedure
from moe_adapt.checks.procedures import toy_batches
from moe_adapt.errors import UserError
from moe_adapt.training.procedures import AdvMoE
from moe_adapt.training.procedures.adversarial import RouterShift, attack, divergence, perturbed
from moe_adapt.training.procedures.base import aux_loss
from moe_adapt.tuner import RoutedLoraConfig


def toy():
    module = CheckedClassifier()
    module.log = lambda *_, **__: None
    for part in module.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    return module.train(), toy_batches(1)[0]


def test_without_a_box_both_losses_are_the_clean_one():
    module, batch = toy()
    clean = module.task_loss(batch) + aux_loss(module)
    for router in (False, True):
        torch.testing.assert_close(AdvMoE(eps=0.0).losses(module, batch, router), clean)
    tiny = AdvMoE(eps=1e-9).losses(module, batch, True)
    torch.testing.assert_close(tiny, clean, rtol=1e-6, atol=1e-6)


def test_an_attack_stays_in_its_box_and_moves_answer_and_routing_more_than_noise():
    module, batch = toy()
    delta = attack(module, batch, eps=0.5, steps=4, rate=0.5)
    box = 0.5 * module.model.get_input_embeddings()(batch["input_ids"]).std()
    assert delta.abs().max() <= box * (1 + 1e-6)
    assert module.training and all(p.grad is None for p in module.parameters())
    noise = box * torch.randn_like(delta).sign()
    module.eval()
    with torch.no_grad(), module.tuner.record():
        answer = module.scored(batch)[1]
        clean = module.tuner.recorded()
        found = {}
        for name, change in (("attack", delta), ("noise", noise)):
            with perturbed(module, batch, change) as moved:
                answers = divergence(answer, module.scored(moved)[1])
            found[name] = float(answers), float(RouterShift(clean, 1.0)(module.tuner.recorded()))
        again = module.scored(batch)[1]
    assert torch.equal(answer, again), "the perturbation ends with its block"
    assert sum(found["attack"]) > 1.5 * sum(found["noise"])


def test_router_shift_is_the_mean_divergence_over_real_tokens_and_its_gradient_reaches_the_router():
    module, batch = toy()
    module.scored(batch)
    clean = module.tuner.recorded()
    assert RouterShift(clean, 1.0)(clean) == 0
    delta = 0.1 * torch.randn(*batch["input_ids"].shape, 16, dtype=torch.float64)
    with perturbed(module, batch, delta) as moved:
        loss, _ = module.scored(moved)
    which = next(number for number, group in enumerate(clean) if group.mask is not None)
    group, other = clean[which], module.tuner.recorded()[which]
    real = batch["attention_mask"].flatten().bool()
    log_p, log_q = group.logits[:, real].log_softmax(-1), other.logits[:, real].log_softmax(-1)
    expected = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
    torch.testing.assert_close(RouterShift([group], 1.0)([other]), expected)
    shift = {"shift": RouterShift(clean, 1.0)}
    (0 * loss + aux_loss(module, shift, configured=False)).backward()
    routers = module.trainable_parameters()["router"]
    assert routers and all(p.grad is not None and p.grad.abs().sum() > 0 for p in routers)


def test_passes_the_public_check_with_two_steps_per_batch():
    check_procedure(lambda: AdvMoE(eps=0.2))


def test_experts_and_routers_move_in_their_own_steps():
    module, batch = toy()
    roles = {name: [p.detach().clone() for p in own] for name, own in module.trainable_parameters().items()}
    optimizer = torch.optim.AdamW([p for own in module.trainable_parameters().values() for p in own], lr=0.1)
    module.optimizers, module.lr_schedulers = lambda: optimizer, lambda: None
    module.manual_backward = lambda loss: loss.backward()
    moved = []
    step = optimizer.step

    def watched():
        step()
        pairs = {
            role: zip(roles[role], own, strict=True) for role, own in module.trainable_parameters().items()
        }
        moved.append({role for role, found in pairs.items() if any(not torch.equal(a, b) for a, b in found)})

    optimizer.step = watched
    AdvMoE().step(module, batch)
    assert moved == [{"experts", "head"}, {"experts", "head", "router"}]


def test_a_model_without_a_router_is_refused():
    lora = RoutedLoraConfig(method="lora", target_modules=["query"], r=2)
    with pytest.raises(UserError, match="no router that learns"):
        AdvMoE().check(CheckedClassifier(tuner=lora))
    with pytest.raises(UserError, match="eps >= 0"):
        AdvMoE(eps=-1.0)
