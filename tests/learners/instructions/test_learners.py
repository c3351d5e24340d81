"""Every learner of instructions: learns, resumes, does not look at the task or at other samples."""

import numpy as np
import pytest
import torch

from moe_adapt.errors import UserError
from moe_adapt.learners import LEARNERS
from moe_adapt.learners.instructions import InstructionLearner
from moe_adapt.training.stream import StreamRunner
from tests.learners.instructions.toys import ROUTED, encoder, learner, stream, writer

NAMES = sorted(ROUTED)
FAST = ("same", "dymoe", "prototype_lora")


def test_every_registered_learner_is_tested():
    known = {name for name in LEARNERS if issubclass(LEARNERS.get(name), InstructionLearner)}
    assert known == set(ROUTED)


def batch_of(tasks, examples=6):
    samples, _ = stream().test_until(tasks - 1)
    return stream().collate([samples[i] for i in range(tasks * examples)])


@pytest.mark.parametrize("name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in NAMES])
def test_runs_resumes_and_ignores_the_batch(name, tmp_path):
    tasks = stream()
    whole = learner(name)
    expected = StreamRunner(tmp_path / "whole").run(whole, tasks)
    last = expected.matrix.rates()[2]
    assert np.isfinite(last).all()

    first, second = learner(name), learner(name, seed=1)
    runner = StreamRunner(tmp_path / "cut")
    original = first.end_task

    def stops(task, run):
        if task.index == 1:
            raise RuntimeError("power cut")
        original(task, run)

    if first.trains_on == "task":
        first.end_task = stops
        with pytest.raises(RuntimeError, match="power cut"):
            runner.run(first, tasks)
        result = runner.run(second, tasks, resume=True)
        assert (result.matrix.correct == expected.matrix.correct).all()
        own, state = second.learner_state(), whole.learner_state()
        for key, tensor in state.items():
            if isinstance(tensor, torch.Tensor):
                assert torch.equal(tensor, own[key]), key

    whole.eval()
    mixed = batch_of(3)
    with torch.no_grad():
        together, _ = whole.answer(mixed)
        order = torch.randperm(len(together), generator=torch.Generator().manual_seed(0)).tolist()
        shuffled = {key: [value[i] for i in order] for key, value in mixed.items() if key != "row"}
        again, _ = whole.answer({**shuffled, "row": mixed["row"][order]})
        assert torch.equal(together[order], again)
        before = {k: v.clone() for k, v in whole.state_dict().items() if isinstance(v, torch.Tensor)}
        for row in (0, 9, 17):
            one = {key: value[row : row + 1] for key, value in mixed.items()}
            alone, _ = whole.answer({**one, "task_ids": torch.tensor([2])})
            assert alone.item() == together[row].item()
        after = whole.state_dict()
        assert all(torch.equal(value, after[key]) for key, value in before.items()), (
            "answering changes nothing"
        )
    assert whole.report()["stored_bytes"] > 0


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
    other = encoder()
    next(iter(other.model.parameters())).data.add_(1.0)
    with pytest.raises(UserError, match="other pretrained weights"):
        runner.run(learner("same", other), tasks, resume=True)


def test_an_encoder_cannot_write():
    built = learner("frozen_instructions").eval()
    with pytest.raises(UserError, match="cannot write"):
        built.answer({**batch_of(1, 2), "choices": [[], []]})


def test_an_answer_longer_than_the_context_is_an_error():
    built = learner("sequential_instructions", writer())
    long = {**batch_of(1, 1), "answer": ["red " * 60]}
    with pytest.raises(UserError, match="leaves no room"):
        built.losses(long)
