"""DyMoE against a straight loop over its formulas, on three tasks; and under gradient checkpointing."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from moe_adapt.backbones.pretrained import enable_gradient_checkpointing
from moe_adapt.checks import ToyAnswerer
from moe_adapt.errors import UserError
from moe_adapt.learners.instructions.growing import ADAPTER
from tests.learners.instructions.toys import learner, stream, writer

PER_TASK, K, TAU, T_ROUTE, T_SEPARATION = 3, 2, 0.05, 0.1, 0.1
ADAPTER_OPTIONS = {
    "num_experts": PER_TASK,
    "selector": {"name": "top_k", "k": K},
    "modifiers": [
        {"name": "token_assignment", "tau": TAU},
        {"name": "temperature", "temperature": T_ROUTE},
    ],
    "aux_losses": [
        {"name": "routing_separation", "weight": 0.7, "k": 4, "temperature": T_SEPARATION},
        {"name": "new_expert_balance", "weight": 0.3},
    ],
}


def grown(backbone, tasks=3, **options):
    """A learner in the middle of its last task, with experts that do something."""
    built = learner("dymoe", backbone, **options)
    torch.manual_seed(1)
    for index in range(tasks):
        built.begin_task(stream(tasks).task(index))
        for layer in built.layers():
            layer.moe_adapt_B[ADAPTER].data.normal_(0, 0.3)
    built.peft_tuner.hooks.session.progress = 0.75
    return built.train()


def by_the_formulas(x, weight, rows, a, b, groups, scale, training):
    """Experts' output of one token, the type of the token, its separation loss and its use of new experts."""
    scores = torch.stack([row @ x / (row.norm() * x.norm()) for row in rows])
    newest = max(groups)
    old = [e for e, group in enumerate(groups) if group != newest]
    new = [e for e, group in enumerate(groups) if group == newest]
    c_old, c_new = max(scores[e] for e in old), max(scores[e] for e in new)
    gap = abs(c_new - c_old) / max(abs(c_new), abs(c_old))
    use_new = bool(gap > TAU and c_new > c_old)
    allowed = (new if use_new else old) if training else old + new
    best = sorted(allowed, key=lambda e: -scores[e].item())[:K]
    gates = torch.softmax(torch.stack([scores[e] for e in best]) / T_ROUTE, 0)
    y = weight @ x + scale * sum(g * (b[:, e] @ (a[e] @ x)) for g, e in zip(gates, best, strict=True))

    top = sorted(old + new, key=lambda e: -scores[e].item())[:4]
    v = dict(zip(top, torch.softmax(torch.stack([scores[e] for e in top]) / T_SEPARATION, 0), strict=True))
    g_new = sum((v[e] for e in new if e in v), torch.zeros(()))
    g_old = sum((v[e] for e in old if e in v), torch.zeros(()))
    target = (1 - max([v[e].detach() for e in old if e in v], default=torch.zeros(()))).clamp(0, 1)
    separation = g_old * g_new - (
        target * g_new.clamp(min=1e-8).log() + (1 - target) * (1 - g_new).clamp(min=1e-8).log()
    )
    share = torch.softmax(torch.stack([scores[e] for e in new]) / T_ROUTE, 0)
    return y, use_new, separation, share, [e in best for e in new]


@pytest.mark.parametrize("training", [True, False])
def test_equals_a_loop_over_the_formulas(training):
    built = grown(ToyAnswerer(), tuner=ADAPTER_OPTIONS).train(training)
    layer = next(layer for layer in built.layers() if layer.site == "up")
    seen = {}
    layer.register_forward_hook(lambda module, args, output: seen.update(x=args[0], y=output))
    samples, _ = stream(3).test_until(0)
    batch = {"prompt": [samples[row]["prompt"] for row in range(2)]}
    built.answerer.run(batch)
    mask = torch.tensor([[n < len(text) for n in range(seen["x"].shape[1])] for text in batch["prompt"]])
    x, y = seen["x"][mask].detach(), seen["y"][mask]

    a, b = (
        torch.cat([frozen, own], dim)
        for frozen, own, dim in (
            (layer.moe_adapt_A_frozen[ADAPTER], layer.moe_adapt_A[ADAPTER], 0),
            (layer.moe_adapt_B_frozen[ADAPTER], layer.moe_adapt_B[ADAPTER], 1),
        )
    )
    rows = built.router_rows(layer)
    groups = [expert // PER_TASK for expert in range(3 * PER_TASK)]
    base = layer.get_base_layer()
    expected = [
        by_the_formulas(token, base.weight, rows, a, b, groups, scale=2.0, training=training) for token in x
    ]
    torch.testing.assert_close(y, torch.stack([row[0] for row in expected]) + base.bias, rtol=1e-4, atol=1e-4)

    admitted = [row for row in expected if row[1]]
    assert admitted and len(admitted) < len(expected), "the tokens are of both kinds"
    if not training:
        return
    separation = torch.stack([row[2] for row in expected]).mean() * 0.5  # the ramp at three quarters
    used = torch.tensor([row[4] for row in admitted]).float().sum(0)
    balance = PER_TASK * (used / used.sum() * torch.stack([row[3] for row in admitted]).mean(0)).sum()
    other = next(layer for layer in built.layers() if layer.site != "up")
    parameters = [layer.moe_adapt_A[ADAPTER], layer.moe_adapt_B[ADAPTER], rows]
    # The layers are two: each has half of the mean over sites. The experts' own loss is the sum of outputs.
    total = (0.7 * separation + 0.3 * balance) / 2 + torch.stack([row[0] for row in expected]).sum()
    want = torch.autograd.grad(total, parameters)
    (built.peft_tuner.aux_loss() + y.sum()).backward()
    assert other.moe_adapt_A[ADAPTER].grad is None or not other.moe_adapt_A[ADAPTER].grad.any()
    for parameter, expected_gradient in zip(parameters, want, strict=True):
        torch.testing.assert_close(parameter.grad, expected_gradient, rtol=1e-3, atol=1e-4)


def test_gradient_checkpointing_changes_nothing():
    """Loss, the separation term and every gradient are those of the plain run."""
    found = []
    for checkpointing in (False, True):
        backbone = writer()
        if checkpointing:
            enable_gradient_checkpointing(backbone.model)
        built = grown(backbone, tasks=2)
        samples, _ = stream(2).test_until(1)
        batch = stream(2).collate([samples[row] for row in (0, 1, 6, 7)])
        losses = built.losses(batch)
        aux = built.peft_tuner.aux_loss()
        (losses["answer"] + aux).backward()
        gradients = {n: p.grad for n, p in built.named_parameters() if p.requires_grad}
        found.append((losses["answer"].detach(), aux.detach(), gradients, built.admission()))
    (loss, aux, gradients, admission), (again, same_aux, same_gradients, same_admission) = found
    assert aux > 0 and torch.equal(loss, again) and torch.equal(aux, same_aux)
    assert admission == same_admission
    assert gradients.keys() == same_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, same_gradients[name], rtol=1e-4, atol=1e-6)
        assert "lm_head" in name or gradient is None or gradient.any(), name


def test_a_step_grows_linearly_with_banks_and_trains_the_newest_only():
    operations, trained = [], []
    for tasks in (1, 2, 3):
        built = grown(ToyAnswerer(), tasks=tasks)
        samples, _ = stream(tasks).test_until(0)
        batch = stream(tasks).collate([samples[row] for row in range(4)])
        built.losses(batch)
        with FlopCounterMode(display=False) as counter:
            (built.losses(batch)["answer"] + built.peft_tuner.aux_loss()).backward()
        operations.append(counter.get_total_flops())
        trained.append(built.report()["trainable_parameters"])
        assert not any(p.requires_grad for n, p in built.named_buffers() if "frozen" in n)
    assert operations[2] - operations[1] == pytest.approx(operations[1] - operations[0], rel=0.01)
    assert len(set(trained)) == 1


def test_the_state_in_the_middle_of_a_task_restores():
    built, other = grown(ToyAnswerer()), learner("dymoe", seed=5)
    other.restore(built.history, built.learner_state())
    samples, _ = stream(3).test_until(2)
    batch = stream(3).collate([samples[row] for row in range(18)])
    with torch.no_grad():
        for mine, same in zip(
            built.eval().choice_scores(batch), other.eval().choice_scores(batch), strict=True
        ):
            assert torch.equal(mine, same)


def test_a_balance_loss_that_balances_nothing_is_refused():
    losses = [{"name": "new_expert_balance", "weight": 1e-3}]
    with pytest.raises(UserError, match="balances nothing"):
        learner("dymoe", tuner={"aux_losses": losses})
