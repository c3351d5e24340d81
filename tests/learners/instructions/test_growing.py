"""Warm starts of a growing pool: the loss of the pool before, old outputs bit for bit, what is refused."""

import copy

import pytest
import torch

from moe_adapt.errors import UserError
from moe_adapt.learners.instructions.growing import ADAPTER
from moe_adapt.training.stream import StreamRunner
from moe_adapt.tuner.edit import prune_experts
from tests.learners.instructions.test_dymoe import batch, run_keeping
from tests.learners.instructions.toys import learner, stream

#: As inc_moelora: no guidance.
PLAIN = {"modifiers": [{"name": "temperature", "temperature": 0.05}], "aux_losses": []}


def grown(tuner=PLAIN, tasks=2, **options):
    """A learner after the first tasks of a stream and the start of the next, and what it was before that."""
    built = learner("dymoe", tuner=tuner, start="most_useful", **options)
    course = stream(tasks + 1, train=8, test=3)
    StreamRunner(attribution=False).run(built, stream(tasks, train=8, test=3))
    before = copy.deepcopy(built)
    built.begin_task(course.task(tasks))
    return built, before, course


@pytest.mark.parametrize("tasks", [1, 2])
def test_the_first_batch_has_the_loss_of_the_pool_before(tasks):
    built, before, course = grown(tasks=tasks)
    rows = course.task(tasks).train
    first = course.collate([rows[i] for i in range(len(rows))])
    built.train()
    before.train()
    loss, source = (float(one.losses(first)["answer"].detach()) for one in (built, before))
    assert loss <= source + 1e-5
    assert loss == pytest.approx(source, rel=1e-5)


def test_new_experts_are_chosen_in_the_place_of_their_originals_and_learn():
    built, _, course = grown(tasks=1)
    rows = course.task(1).train
    built.train()
    built.losses(course.collate([rows[i] for i in range(len(rows))]))["answer"].backward()
    layer = built.layers()[0]
    twins = layer.routers[ADAPTER].tensors(layer)["modifiers.1.twins"]
    assert sorted(twins.tolist()) == [0, 0, 1, 1]
    assert layer.moe_adapt_B[ADAPTER].grad.abs().sum() > 0


def test_without_the_copies_old_outputs_are_bit_identical():
    tasks = stream(2, train=8, test=3)
    built = learner("dymoe", tuner=PLAIN, start="most_useful", weight_decay=0.1)
    scores, _ = run_keeping(built, tasks)
    assert not torch.equal(scores[1], scores[0])
    pruned = copy.deepcopy(built).eval()
    prune_experts(pruned.peft_tuner, [2, 3])
    with torch.no_grad():
        assert torch.equal(torch.stack(pruned.choice_scores(batch(tasks))), scores[0])


def test_a_restored_learner_is_the_same():
    built, _, course = grown(tasks=1)
    other = learner("dymoe", tuner=PLAIN, start="most_useful", seed=5)
    other.restore(built.history, built.learner_state())
    built.eval()
    other.eval()
    with torch.no_grad():
        pairs = zip(built.choice_scores(batch(course)), other.choice_scores(batch(course)), strict=True)
        assert all(torch.equal(one, two) for one, two in pairs)


def test_bad_starts_are_refused():
    with pytest.raises(UserError, match="start is 'random' or 'most_useful'"):
        learner("dymoe", start="useful")
    with pytest.raises(UserError, match="choose one"):
        learner("dymoe", start="most_useful", row_init="tokens")
    with pytest.raises(UserError, match="start_samples"):
        learner("dymoe", start="most_useful", start_samples=0)
