"""Sequential fine-tuning: its loss by hand, which rows it moves, what it trains."""

import pytest
import torch

from moe_adapt.checks import ToyEncoder, gaussian_stream
from moe_adapt.errors import UserError
from moe_adapt.learners import FineTuning, Joint
from moe_adapt.tuner import RoutedLoraConfig
from tests.learners.passes import begin, first, whole

STREAM = gaussian_stream(tasks=3)


def in_task_two(**options):
    learner = FineTuning(ToyEncoder(), **options)
    begin(learner, first(STREAM, 2))
    generator = torch.Generator().manual_seed(1)
    for parameter in learner.head.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return learner


@pytest.mark.parametrize(("loss_over", "competing"), [("seen", [0, 1, 2, 3]), ("task", [2, 3])])
def test_the_loss_is_the_mean_negative_log_probability_among_the_competing_classes(loss_over, competing):
    learner, batch = in_task_two(loss_over=loss_over), whole(STREAM, 1)
    logits = learner.encode(batch) @ learner.head.weight.T + learner.head.bias
    expected = torch.stack(
        [
            logits[row, competing].exp().sum().log() - logits[row, label]
            for row, label in enumerate(batch["labels"].tolist())
        ]
    ).mean()
    found = learner.losses(batch)
    assert found.keys() == {"cross_entropy"}
    torch.testing.assert_close(found["cross_entropy"], expected)


@pytest.mark.parametrize(("loss_over", "moves"), [("seen", True), ("task", False)])
def test_rows_of_earlier_classes_have_a_gradient_only_if_they_compete(loss_over, moves):
    learner = in_task_two(loss_over=loss_over)
    learner.losses(whole(STREAM, 1))["cross_entropy"].backward()
    for gradient in (learner.head.weight.grad, learner.head.bias.grad):
        assert gradient[2:].abs().min() > 0
        assert bool(gradient[:2].any()) == moves


def test_new_rows_are_zero_and_old_ones_stay():
    learner = FineTuning(ToyEncoder())
    begin(learner, first(STREAM, 1))
    learner.head.weight.data.fill_(3.0)
    learner.begin_task(STREAM.task(1))
    assert learner.head.weight.tolist() == [[3.0] * 8] * 2 + [[0.0] * 8] * 2
    assert learner.head.bias.tolist() == [0.0] * 4


@pytest.mark.parametrize(
    ("options", "roles"),
    [
        ({}, {"head"}),
        ({"tunes": "full"}, {"head", "backbone"}),
        (
            {"tuner": RoutedLoraConfig(method="soft", num_experts=2, target_modules=["0"])},
            {"head", "experts", "router"},
        ),
    ],
)
def test_what_is_trained(options, roles):
    learner = FineTuning(ToyEncoder(), **options)
    begin(learner, first(STREAM, 1))
    assert {role for role, found in learner.trainable_parameters().items() if found} == roles


def test_contradictions_are_refused():
    with pytest.raises(UserError, match="goes with a tuner"):
        FineTuning(ToyEncoder(), tunes="adapter")


def test_joint_training_takes_all_samples_at_once():
    assert Joint.trains_on == "all" and FineTuning.trains_on == "task"
