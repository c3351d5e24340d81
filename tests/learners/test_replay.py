"""Experience replay and DER++: their losses by the formulas, and what enters the reservoir."""

import pytest
import torch
from torch.nn import functional as F

from moe_adapt.checks import ToyEncoder, gaussian_stream
from moe_adapt.learners import DarkReplay, ExperienceReplay
from moe_adapt.learners.replay import stored_distance
from moe_adapt.training.stream import StreamRunner
from tests.learners.passes import begin, first, whole

STREAM = gaussian_stream(tasks=3, train=6)


def filled(kind, **options):
    """A learner in its second task, with samples of the first in its reservoir, and a batch."""
    learner = kind(ToyEncoder(), **{"capacity": 50, "replay_batch_size": 5, **options})
    begin(learner, first(STREAM, 1))
    randomize(learner, 0)
    learner.losses(whole(STREAM, 0))
    assert len(learner.reservoir) == 12
    learner.begin_task(STREAM.task(1))
    randomize(learner, 1)
    return learner, whole(STREAM, 1)


def randomize(learner, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in learner.head.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)


def cross_entropy(learner, batch):
    return F.nll_loss(learner.scores(batch).log_softmax(1), batch["labels"]).detach()


def drawn(learner, count, batches):
    """What the learner draws next, without letting it notice."""
    state = torch.get_rng_state()
    found = [learner.reservoir.draw(count) for _ in range(batches)]
    torch.set_rng_state(state)
    return found


@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_replay_adds_the_weighted_loss_of_old_samples(weight):
    learner, batch = filled(ExperienceReplay, replay_weight=weight)
    (old,) = drawn(learner, 5, 1)
    expected = {
        "cross_entropy": cross_entropy(learner, batch),
        "replay": weight * cross_entropy(learner, old),
    }
    torch.testing.assert_close({k: v.detach() for k, v in learner.losses(batch).items()}, expected)
    assert int(learner.reservoir.seen) == 24


@pytest.mark.parametrize(("alpha", "beta"), [(0.1, 0.5), (0.7, 0.0), (0.0, 2.0)])
def test_dark_replay_is_the_formula(alpha, beta):
    learner, batch = filled(DarkReplay, alpha=alpha, beta=beta)
    dark, plain = drawn(learner, 5, 2)
    assert not torch.equal(dark["row"], plain["row"])
    away = learner.scores(dark)[:, :2].detach() - dark["stored_logits"]
    expected = {
        "cross_entropy": cross_entropy(learner, batch),
        "dark": alpha * away.square().sum() / 10,
        "replay": beta * cross_entropy(learner, plain),
    }
    torch.testing.assert_close({k: v.detach() for k, v in learner.losses(batch).items()}, expected)


def test_stored_logits_are_those_of_the_moment_and_carry_no_gradient():
    learner, batch = filled(DarkReplay)
    logits = learner.scores(batch).detach()
    learner.losses(batch)
    stored = learner.reservoir.columns["stored_logits"]
    torch.testing.assert_close(stored[12:], logits)
    assert stored[:12, 2:].isnan().all() and not stored.requires_grad


def test_the_distance_to_stored_logits_is_over_the_classes_that_they_had():
    logits = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    stored = torch.tensor([[0.0, float("nan")], [1.0, 7.0]])
    assert stored_distance(logits, stored) == pytest.approx((1 + 9 + 4) / 3)


def test_samples_enter_in_the_first_epoch_only():
    learner = ExperienceReplay(ToyEncoder(), epochs=3, capacity=10, batch_size=4)
    StreamRunner().run(learner, STREAM)
    assert int(learner.reservoir.seen) == 36
    assert len(learner.reservoir) == 10


def test_as_many_old_samples_as_new_ones_unless_told_otherwise():
    learner = ExperienceReplay(ToyEncoder(), batch_size=7)
    assert learner._draws == 7
    assert ExperienceReplay(ToyEncoder(), batch_size=7, replay_batch_size=2)._draws == 2


def test_stored_samples_are_counted_as_replay_memory():
    learner, _ = filled(ExperienceReplay)
    held = learner.memory_bytes()
    assert held["replay"] == learner.reservoir.nbytes() > 0
    assert held["statistics"] == learner.reservoir.seen.nbytes
