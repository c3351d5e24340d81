"""Every learner of instructions: learns, resumes, does not look at the task or at other samples."""

import numpy as np
import pytest
import torch

from moe_adapt.checks import ToyAnswerer, check_learner
from moe_adapt.errors import UserError
from moe_adapt.learners import LEARNERS
from moe_adapt.learners.instructions import InstructionLearner, SequentialInstructions
from moe_adapt.training.stream import StreamRunner
from moe_adapt.tuner import RoutedLoraConfig
from tests.learners.instructions.toys import ROUTED, learner, stream, writer


def test_every_registered_learner_is_tested():
    known = {name for name in LEARNERS if issubclass(LEARNERS.get(name), InstructionLearner)}
    assert known == set(ROUTED)


def batch_of(tasks, examples=6):
    samples, _ = stream().test_until(tasks - 1)
    return stream().collate([samples[i] for i in range(tasks * examples)])


@pytest.mark.parametrize("name", sorted(ROUTED))
def test_check_learner(name):
    check_learner(lambda: learner(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(ROUTED))
def test_check_learner_on_a_language_model(name):
    check_learner(lambda: learner(name, writer()), stream(train=6, test=3))


@pytest.mark.parametrize(
    ("leak", "match"),
    [
        (lambda row, batch: row + (batch["answer"][0] in batch["choices"][0][:1]), "answers at test"),
        (lambda row, batch: row * len(batch["row"]), "depend on the batch"),
        (lambda row, batch: row + float("task_ids" in batch), "task id"),
    ],
)
def test_leaks_are_found(leak, match):
    class Leaks(SequentialInstructions):
        def choice_scores(self, batch):
            hidden = {"answer": [""], **batch}
            return [leak(row, hidden) for row in super().choice_scores(batch)]

    def make():
        torch.manual_seed(0)
        return Leaks(ToyAnswerer(), RoutedLoraConfig(method="lora", r=2, target_modules=["up"]))

    with pytest.raises(AssertionError, match=match):
        check_learner(make, stream(train=2, test=2))


@pytest.mark.slow
def test_training_helps_and_joint_training_bounds():
    """Tiny random models learn slowly; the joint bound beats no training."""
    frozen = StreamRunner().run(learner("frozen_instructions"), stream()).matrix.rates()[2].mean()
    joint = (
        StreamRunner()
        .run(learner("joint_instructions", epochs=16, lr=1e-2), stream())
        .matrix.rates()[2]
        .mean()
    )
    assert joint > frozen + 0.15


@pytest.mark.parametrize("name", ["same", "dymoe"])
def test_language_models_learn_and_generate(name):
    built = learner(name, writer())
    result = StreamRunner().run(built, stream(2, train=6, test=3))
    assert np.isfinite(result.matrix.rates()[1]).all()
    free = {**batch_of(1, 2), "choices": [[], []]}
    right, taken = built.eval().answer(free)
    assert right.shape == (2,) and taken.tolist() == [-1, -1]


def test_a_task_of_one_sample_is_learned():
    tasks = stream(2, train=1, test=1)
    result = StreamRunner().run(learner("same"), tasks)
    assert [row["steps"] for row in result.tasks] == [1, 1]


def test_statistics_of_another_model_are_refused(tmp_path):
    tasks = stream(2)
    runner = StreamRunner(tmp_path)
    runner.run(learner("same"), tasks)
    with pytest.raises(UserError, match="other pretrained weights"):
        runner.run(learner("same", ToyAnswerer(seed=1)), tasks, resume=True)


def test_an_encoder_cannot_write():
    built = learner("frozen_instructions").eval()
    with pytest.raises(UserError, match="cannot write"):
        built.answer({**batch_of(1, 2), "choices": [[], []]})


def test_an_answer_longer_than_the_context_is_an_error():
    built = learner("sequential_instructions", writer())
    long = {**batch_of(1, 1), "answer": ["red " * 60]}
    with pytest.raises(UserError, match="leaves no room"):
        built.losses(long)
