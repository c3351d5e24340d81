"""SAME: what each rule does to routing and experts of earlier tasks, end to end."""

import copy

import pytest
import torch

from moe_adapt.backbones.pretrained import enable_gradient_checkpointing
from moe_adapt.errors import UserError
from moe_adapt.learners.instructions.same import ADAPTER
from moe_adapt.optim.guard import selection_stability
from moe_adapt.training.stream import StreamRunner
from tests.learners.instructions.toys import learner, stream, writer


class Watched:
    """A run that keeps the routers and old inputs as they were after the first task."""

    def __init__(self, tasks=2, **options):
        self.learner = learner("same", **options)
        end = self.learner.end_task
        self.routers, self.moments = {}, {}

        def after(task, run):
            end(task, run)
            if task.index == 0:
                for layer in self.learner.layers():
                    self.routers[layer.site] = layer.routers[ADAPTER].rows(layer).detach().clone()
                    self.moments[layer.site] = self.learner.state_of(layer).moment.matrix("past").clone()

        self.learner.end_task = after
        self.result = StreamRunner().run(self.learner, stream(tasks))

    def score_change(self):
        """Root mean square change of old scores relative to their size, over layers."""
        found = []
        for layer in self.learner.layers():
            old, now = self.routers[layer.site], layer.routers[ADAPTER].rows(layer).detach()
            c = self.moments[layer.site]
            change, size = now - old, old
            found.append(
                float((((change @ c) * change).sum() / ((size @ c) * size).sum()).clamp(min=0).sqrt())
            )
        return sum(found) / len(found)


def test_strict_protects_old_scores_and_the_published_rule_does_not():
    changes = {
        rule if isinstance(rule, str) else rule["name"]: Watched(router_update=rule, epochs=4).score_change()
        for rule in ("plain", "paper", {"name": "strict", "delta": 0.999, "delta_max": 0.999})
    }
    assert changes["paper"] > 0.7 * changes["plain"]
    assert changes["strict"] < 0.25 * changes["plain"]


def test_the_guard_keeps_the_selection_of_retained_inputs():
    run = Watched(router_update={"name": "guard", "k": 1, "max_inputs": 64}, epochs=4)
    for layer in run.learner.layers():
        rule, now = run.learner.state_of(layer).rule, layer.routers[ADAPTER].rows(layer).detach()
        assert rule.rows.shape[0] <= 64
        assert selection_stability(rule.rows, rule.weight, now, k=1) == 1.0
    assert run.learner.report()["statistics_bytes"] > 0


@pytest.mark.parametrize(
    ("rule", "precondition", "optimizer"),
    [
        ("paper", "both", torch.optim.AdamW),
        ("strict", "both", torch.optim.SGD),
        ("soft", "both", torch.optim.AdamW),
        ("relevant", "down_per_expert", torch.optim.SGD),
        ("null_ratio", "down", torch.optim.AdamW),
        ("trust", "none", torch.optim.AdamW),
        ({"name": "guard", "k": 2}, "both", torch.optim.AdamW),
    ],
)
def test_every_rule_runs_and_restores(rule, precondition, optimizer):
    options = {"router_update": rule, "precondition": precondition, "optimizer": optimizer, "epochs": 1}
    built = learner("same", **options)
    StreamRunner(attribution=False).run(built, stream(2, train=6, test=2))
    state = {k: copy.deepcopy(v) for k, v in built.learner_state().items()}
    other = learner("same", **options, seed=3)
    other.restore(built.history, state)
    restored = other.learner_state()
    for key, value in built.learner_state().items():
        same = restored[key]
        assert torch.equal(value, same) if isinstance(value, torch.Tensor) else value.keys() == same.keys(), (
            key
        )


def test_frozen_experts_are_counted_and_stay():
    built = learner("same", freeze_below=0.1, freeze_after=1, epochs=2)
    begun, checked = {}, []
    end, step = built.end_task, built.on_train_batch_end

    def stepped(*arguments):
        step(*arguments)
        if built.trainer.global_step == 1:
            for layer in built.layers():
                begun[layer.site] = layer.moe_adapt_B[ADAPTER].detach().clone()

    def after(task, run):
        for layer in built.layers():
            mask = built.state_of(layer).freeze[1].mask
            if mask is not None and mask.any():
                assert torch.equal(layer.moe_adapt_B[ADAPTER][:, mask], begun[layer.site][:, mask])
                checked.append(int(mask.sum()))
        end(task, run)

    built.on_train_batch_end, built.end_task = stepped, after
    StreamRunner().run(built, stream(2))
    assert checked, "with a history some expert falls below the score"
    assert built.report()["frozen_experts"] == sum(checked)
    assert built.report()["degradation"] > 0


def test_moments_are_the_same_with_gradient_checkpointing():
    """Recomputation is not counted twice, and padding not at all."""
    found = []
    for checkpointing in (False, True):
        backbone = writer()
        if checkpointing:
            enable_gradient_checkpointing(backbone.model)
        built = learner("same", backbone, epochs=1, router_update="plain")
        StreamRunner().run(built, stream(1, train=8, test=2))
        found.append([built.state_of(layer).moment for layer in built.layers()])
    for plain, recomputed in zip(*found, strict=True):
        assert plain.rows_seen() == recomputed.rows_seen() > 0
        torch.testing.assert_close(plain.matrix(), recomputed.matrix(), rtol=1e-3, atol=1e-4)


def test_layers_that_share_an_input_share_its_moment():
    built = learner("same", writer(), epochs=1)
    StreamRunner().run(built, stream(1, train=8, test=2))
    by_name = {layer.site: built.state_of(layer).moment.matrix() for layer in built.layers()}
    gate, up = (next(m for site, m in by_name.items() if part in site) for part in ("gate_proj", "up_proj"))
    assert torch.equal(gate, up)


@pytest.mark.parametrize(("k", "moves"), [(1, False), (2, True)])
def test_a_router_with_one_expert_left_learns_nothing(k, moves):
    """Renormalised over one expert, the gate is 1 whatever the router says; over two it is not."""
    built = learner("same", tuner={"selector": {"name": "top_k", "k": k}}).train()
    for layer in built.layers():
        layer.moe_adapt_B[ADAPTER].data.normal_()
    tasks = stream(1)
    built.losses(tasks.collate([tasks.task(0).train[row] for row in range(6)]))["answer"].backward()
    for layer in built.layers():
        gradient = layer.routers[ADAPTER].rows(layer).grad
        assert gradient is not None and bool((gradient.abs() > 1e-9).any()) == moves


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"tuner": {"num_experts": 1}}, "at least two experts"),
        ({"tuner": {"scorer": {"name": "cosine"}}}, "linear scorer"),
        ({"precondition": "up"}, "precondition"),
        ({"freeze_after": 0}, "at least 1"),
        ({"router_update": "spectral"}, "router update"),
    ],
)
def test_bad_options(options, match):
    with pytest.raises(UserError, match=match):
        learner("same", **options)
