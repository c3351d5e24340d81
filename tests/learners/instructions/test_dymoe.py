"""DyMoE: the pool grows, old parts stay bit-identical, new rows start as asked, starvation is seen."""

import copy

import pytest
import torch

from moe_adapt.errors import UserError
from moe_adapt.learners.instructions import dymoe as module
from moe_adapt.learners.instructions.dymoe import farthest_points
from moe_adapt.learners.instructions.growing import ADAPTER
from moe_adapt.routing.token_types import group_scores, token_types
from moe_adapt.training.stream import StreamRunner
from moe_adapt.tuner.edit import add_experts, prune_experts
from tests.learners.instructions.toys import learner, stream, writer

GUARDED = {
    "tuner": {
        "modifiers": [
            {"name": "token_assignment", "tau": 0.2, "tau_warmup": 0.1},
            {"name": "temperature", "temperature": 0.01},
        ]
    },
    "row_init": "tokens",
}


def batch(tasks):
    samples, _ = tasks.test_until(0)
    return tasks.collate([samples[i] for i in range(len(samples))])


def run_keeping(built, tasks):
    """Run a stream; return the first task's scores and the state, as they were after each task."""
    scores, copies = [], []
    end = built.end_task

    def after(task, run):
        end(task, run)
        scores.append(torch.stack(built.choice_scores(batch(tasks))))
        copies.append({k: v.clone() for k, v in built.learner_state().items()})

    built.end_task = after
    StreamRunner(attribution=False).run(built, tasks)
    return scores, copies


@pytest.mark.parametrize("kind", ["encoder", "writer"])
def test_with_new_banks_removed_old_outputs_are_bit_identical(kind):
    tasks = stream(3, train=6, test=3)
    built = learner("dymoe", writer() if kind == "writer" else None, weight_decay=0.1)
    scores, _ = run_keeping(built, tasks)
    assert not torch.equal(scores[2], scores[0]), "with the new banks, routing leaks"
    pruned = copy.deepcopy(built).eval()
    prune_experts(pruned.peft_tuner, [4, 5])
    with torch.no_grad():
        assert torch.equal(torch.stack(pruned.choice_scores(batch(tasks))), scores[1])
        prune_experts(pruned.peft_tuner, [2, 3])
        assert torch.equal(torch.stack(pruned.choice_scores(batch(tasks))), scores[0])


def test_old_experts_and_rows_never_move():
    tasks = stream(2, train=16)
    built = learner("dymoe", weight_decay=0.5)
    _, copies = run_keeping(built, tasks)
    for layer in built.layers():
        assert layer.specs[ADAPTER].num_experts == 4 and layer.specs[ADAPTER].frozen == 2
        rows = f"backbone.model.base_model.model.{layer.site}.moe_adapt_router__scorer__weight.{ADAPTER}"
        assert torch.equal(copies[1][rows][:2], copies[0][rows])
        assert layer.routers[ADAPTER].tensors(layer)["modifiers.0.expert_groups"].tolist() == [0, 0, 1, 1]
        old_a = copies[0][rows.replace("router__scorer__weight", "A")]
        assert torch.equal(layer.moe_adapt_A_frozen[ADAPTER], old_a)


def test_an_untrained_bank_is_not_neutral():
    """Routing mass moves to experts that give nothing yet; only removing the bank restores the outputs."""
    tasks = stream(1, train=8, test=4)
    built = learner("dymoe")
    scores, _ = run_keeping(built, tasks)
    torch.manual_seed(0)
    add_experts(built.peft_tuner, 2)
    built.eval()
    with torch.no_grad():
        assert not torch.equal(torch.stack(built.choice_scores(batch(tasks))), scores[0])


def test_admission_is_logged_and_starvation_is_said(monkeypatch):
    monkeypatch.setattr(module, "STARVING_STEPS", 2)
    monkeypatch.setattr(module, "STARVING", 1.1)
    built = learner("dymoe")
    with pytest.warns(UserWarning, match="starving.*tau_warmup"):
        StreamRunner(attribution=False).run(built, stream(2))
    admission = built.report()["admission"]
    assert set(admission) == {"new", "old", "ambiguous"}
    assert sum(admission.values()) == pytest.approx(1.0, abs=1e-6)
    assert built.report()["admission_by_site"].keys() == {layer.site for layer in built.layers()}


def test_rows_from_tokens_cure_starvation_by_a_common_direction():
    """Real hidden states share a mean direction; old rows have learned it, random new rows have not."""
    generator = torch.Generator().manual_seed(0)
    mean = 3 * torch.nn.functional.normalize(torch.randn(64, generator=generator), dim=0)
    old, new = (mean + torch.randn(500, 64, generator=generator) / 8**0.5 for _ in range(2))
    groups = torch.tensor([0] * 4 + [1] * 4)

    def admitted(rows):
        weight = torch.nn.functional.normalize(torch.cat([farthest_points(old, 4, generator), rows]), dim=-1)
        scores = torch.nn.functional.normalize(new, dim=-1) @ weight.t()
        return token_types(*group_scores(scores, groups), tau=0.02).new.float().mean().item()

    assert admitted(torch.randn(4, 64, generator=generator)) < 0.01
    assert admitted(farthest_points(new, 4, generator)) > 0.3


def test_tokens_start_rows_of_their_own_length():
    built = learner("dymoe", **GUARDED)
    StreamRunner(attribution=False).run(built, stream(2, train=6, test=2))
    for layer in built.layers():
        rows = layer.routers[ADAPTER].tensors(layer)["scorer.weight"]
        assert torch.isfinite(rows).all() and (rows.norm(dim=-1) > 0).all()


def test_tokens_can_be_centred():
    tuner = {"scorer": {"name": "cosine", "temperature": 1.0, "learn_temperature": False, "center": True}}
    built = learner("dymoe", tuner=tuner, center=True)
    _, copies = run_keeping(built, stream(2, train=8, test=3))
    centers = [key for key in copies[0] if "scorer__center" in key]
    assert centers and all(copies[0][key].abs().sum() > 0 for key in centers)
    assert all(torch.equal(copies[0][key], copies[1][key]) for key in centers), "frozen after the first task"


def test_farthest_points_are_far():
    rows = torch.tensor([[1.0, 0.0], [0.99, 0.1], [0.0, 1.0], [-1.0, 0.0]])
    chosen = farthest_points(rows, 3, torch.Generator().manual_seed(0))
    cosines = torch.nn.functional.normalize(chosen, dim=-1)
    assert (cosines @ cosines.t() - torch.eye(3)).max() < 0.2
    assert len(farthest_points(rows[:1], 3, torch.Generator().manual_seed(0))) == 3


def test_trainable_parameters_do_not_grow_with_tasks():
    built, seen = learner("dymoe"), []
    end = built.end_task

    def after(task, run):
        end(task, run)
        seen.append(built.report()["trainable_parameters"])

    built.end_task = after
    StreamRunner(attribution=False).run(built, stream(3, train=8, test=3))
    assert len(set(seen)) == 1


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"tuner": {"scorer": {"name": "linear"}}}, "cosines only"),
        ({"center": True}, "center: true"),
        ({"row_init": "zeros"}, "row_init"),
    ],
)
def test_bad_options(options, match):
    with pytest.raises(UserError, match=match):
        learner("dymoe", **options)
