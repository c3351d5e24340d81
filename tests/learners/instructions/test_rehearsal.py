"""Replay of stored instructions and the routing anchor of stored inputs, by their formulas."""

import pytest
import torch

from moe_adapt.errors import UserError
from moe_adapt.learners.instructions.memory import SampleMemory
from tests.learners.instructions.toys import learner, stream
from tests.learners.passes import Pass, begin, first, whole

STREAM = stream()


def ended(name, tasks=1, **options):
    """A learner right after the begin of the next task, with random adapters."""
    built = learner(name, **options)
    randomize(built, 1)
    for index in range(tasks):
        begin(built, [STREAM.task(index)])
        built.eval()
        with torch.no_grad():
            built.end_task(STREAM.task(index), Pass(STREAM))
    begin(built, [STREAM.task(tasks)])
    return built.train()


def randomize(built, seed):
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in built.state_dict().items():
        if "moe_adapt_" in name:
            tensor.copy_(torch.randn(tensor.shape, generator=generator))


def test_the_memory_keeps_some_of_each_task_and_draws_all_alike():
    memory = SampleMemory(4)
    for index in range(2):
        memory.add(STREAM.task(index))
    kept = [sample["prompt"] for sample in memory.samples()]
    assert len(memory) == len(set(kept)) == 8
    for index in range(2):
        assert set(kept[4 * index : 4 * index + 4]) <= set(whole(STREAM, index)["prompt"])
    torch.manual_seed(0)
    drawn = memory.draw(4000)
    counts = [drawn["prompt"].count(prompt) for prompt in kept]
    assert sum((count - 500) ** 2 / 500 for count in counts) < 24.3, "chi-square, 7 degrees of freedom"
    assert drawn["row"].tolist() == [-1] * 4000


def test_what_is_kept_does_not_depend_on_the_state_of_generators():
    one, other = SampleMemory(4), SampleMemory(4)
    one.add(STREAM.task(1))
    torch.rand(3)
    other.add(STREAM.task(1))
    assert torch.equal(one.stored, other.stored)
    assert one.stored.dtype == torch.uint8


def test_a_memory_of_nothing_is_refused():
    with pytest.raises(UserError, match="at least one"):
        SampleMemory(0)


def test_replay_adds_the_loss_of_stored_samples():
    built, batch = ended("replay_instructions", per_task=6, replay_size=3), whole(STREAM, 1)
    torch.manual_seed(5)
    old = built.memory.draw(3)
    assert set(old["prompt"]) <= set(whole(STREAM, 0)["prompt"])
    expected = {"answer": built.answerer.answer_loss(batch), "replay": built.answerer.answer_loss(old)}
    torch.manual_seed(5)
    found = built.losses(batch)
    torch.testing.assert_close(found, expected)
    fresh = learner("replay_instructions")
    begin(fresh, first(STREAM, 1))
    assert fresh.losses(whole(STREAM, 0)).keys() == {"answer"}


def test_auxiliary_losses_are_those_of_the_new_samples():
    balance = {"aux_losses": [{"name": "load_balance", "weight": 1.0}]}
    built, batch = ended("replay_instructions", tuner=balance), whole(STREAM, 1)
    built.answerer.answer_loss(batch)
    alone = built.peft_tuner.aux_loss()
    built.losses(batch)
    torch.testing.assert_close(built.peft_tuner.aux_loss(), alone)


@pytest.mark.parametrize("weight", [1.0, 0.2])
def test_the_anchor_is_the_mean_divergence_on_stored_inputs(weight):
    built, batch = ended("routing_anchor", tasks=2, anchor=weight, per_task=16), whole(STREAM, 2)
    assert built.losses(batch)["anchor"].abs() < 1e-6, "the routers are where they were"
    randomize(built, 2)
    terms = []
    for layer in built.layers():
        held = built.anchors[layer.site.replace(".", "/")]
        assert held.inputs.shape == (32, layer.in_features), "16 of each of two tasks"
        now = (held.inputs @ layer.moe_adapt_router__scorer__weight["default"].T).softmax(-1)
        terms.append((held.gates * (held.gates / now).log()).sum(-1).mean())
    found = built.losses(batch)
    assert found.keys() == {"answer", "anchor"}
    torch.testing.assert_close(found["anchor"], weight * torch.stack(terms).mean(), rtol=1e-4, atol=1e-5)


def test_the_anchor_stores_inputs_that_the_layer_saw_and_how_it_gated_them():
    built, seen = learner("routing_anchor", per_task=16), {}
    randomize(built, 1)
    begin(built, first(STREAM, 1))
    built.eval()

    def watch(layer, args, output):
        seen[layer.site] = args[0].detach().reshape(-1, layer.in_features)

    handles = [layer.register_forward_hook(watch) for layer in built.layers()]
    with torch.no_grad():
        built.end_task(STREAM.task(0), Pass(STREAM))
    for handle in handles:
        handle.remove()
    for layer in built.layers():
        held = built.anchors[layer.site.replace(".", "/")]
        exact = "donot_use_mm_for_euclid_dist"
        distance = torch.cdist(held.inputs, seen[layer.site], compute_mode=exact).min(dim=1).values
        assert not distance.any()
        rows = layer.moe_adapt_router__scorer__weight["default"]
        torch.testing.assert_close(held.gates, (held.inputs @ rows.T).softmax(-1), rtol=1e-4, atol=1e-6)


def test_the_anchor_pulls_routers_and_no_expert():
    built = ended("routing_anchor")
    randomize(built, 2)
    built.losses(whole(STREAM, 1))["anchor"].backward()
    moved = {name for name, p in built.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved and all("moe_adapt_router__scorer__weight" in name for name in moved)
