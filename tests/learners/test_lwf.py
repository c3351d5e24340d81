"""Learning without forgetting: its distillation term by the formula, and who the teacher is."""

import pytest
import torch

from moe_adapt.checks import ToyEncoder, gaussian_stream
from moe_adapt.learners import LwF
from moe_adapt.tuner import RoutedLoraConfig
from tests.learners.passes import begin, first, whole

STREAM = gaussian_stream(tasks=3)


def randomize(learner, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in learner.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize(("tau", "strength"), [(2.0, 3.0), (3.0, 0.5)])
def test_distillation_is_the_divergence_from_the_model_before_the_task(tau, strength, adapted):
    config = RoutedLoraConfig(method="soft", num_experts=2, target_modules=["0"], dropout=0.0)
    tuner = config if adapted else None
    learner = LwF(ToyEncoder(), temperature=tau, strength=strength, tuner=tuner)
    begin(learner, first(STREAM, 1))
    randomize(learner, 0)
    batch = whole(STREAM, 1)
    before = learner.eval().scores(batch).detach()
    learner.begin_task(STREAM.task(1))
    randomize(learner, 1)
    after = learner.scores(batch).detach()[:, :2]
    old, new = ((logits / tau).exp() for logits in (before, after))
    p, q = old / old.sum(1, keepdim=True), new / new.sum(1, keepdim=True)
    expected = strength * tau**2 * (p * (p / q).log()).sum() / len(batch["labels"])
    found = learner.losses(batch)
    assert found.keys() == {"cross_entropy", "distillation"}
    torch.testing.assert_close(found["distillation"], expected, rtol=1e-4, atol=1e-5)


def test_the_teacher_does_not_learn_and_there_is_none_in_the_first_task():
    learner = LwF(ToyEncoder())
    begin(learner, first(STREAM, 1))
    assert learner.losses(whole(STREAM, 0)).keys() == {"cross_entropy"}
    randomize(learner, 0)
    learner.begin_task(STREAM.task(1))
    batch = whole(STREAM, 1)
    assert learner.losses(batch)["distillation"].abs() < 1e-6, "student and teacher are the same yet"
    randomize(learner, 1)
    assert learner.losses(batch)["distillation"] > 0.01
    assert learner.training


def test_old_rows_are_left_to_the_teacher():
    learner = LwF(ToyEncoder())
    begin(learner, first(STREAM, 2))
    randomize(learner, 0)
    found = learner.losses(whole(STREAM, 1))
    (gradient,) = torch.autograd.grad(found["cross_entropy"], learner.head.weight, retain_graph=True)
    assert not gradient[:2].any() and gradient[2:].any()
    (gradient,) = torch.autograd.grad(found["distillation"], learner.head.weight)
    assert gradient[:2].any() and not gradient[2:].any()
