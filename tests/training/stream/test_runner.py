import numpy as np
import pytest
import torch

from moe_adapt.errors import UserError
from moe_adapt.learners import FineTuning, Joint, Learner
from moe_adapt.training.stream import StreamRunner
from tests.streams.toys import ToyEncoder, gaussian_stream


def learner(seed: int = 0, **settings) -> FineTuning:
    torch.manual_seed(seed)
    return FineTuning(ToyEncoder(), epochs=2, lr=0.05, **settings)


def test_every_task_is_trained_and_everything_seen_is_tested():
    stream = gaussian_stream()
    result = StreamRunner().run(learner(), stream)
    assert [task["steps"] > 0 for task in result.tasks] == [True] * 4
    measured = result.matrix.correct >= 0
    assert (measured == np.tril(np.ones((4, 4), dtype=bool))).all()
    assert (np.diag(result.matrix.rates()) > 0.9).all()
    assert (result.within.correct >= result.matrix.correct).all()


def test_joint_training_is_tested_once_and_beats_fine_tuning():
    stream = gaussian_stream()
    joint = StreamRunner().run(Joint(ToyEncoder(), epochs=8, lr=0.05), stream).matrix.rates()
    sequential = StreamRunner().run(learner(), stream).matrix.rates()
    assert np.isnan(joint[:3]).all()
    assert joint[3].mean() > sequential[3].mean() + 0.1


def test_a_stopped_run_goes_on_to_the_same_result(tmp_path):
    stream = gaussian_stream()
    whole = learner()
    expected = StreamRunner(tmp_path / "whole").run(whole, stream)

    class Stops(FineTuning):
        def end_task(self, task, run):
            if task.index == 2:
                raise RuntimeError("power cut")

    torch.manual_seed(0)
    stopping = Stops(ToyEncoder(), epochs=2, lr=0.05)
    stopping.settings = whole.settings
    with pytest.raises(RuntimeError, match="power cut"):
        StreamRunner(tmp_path / "cut").run(stopping, stream)
    resumed = learner(seed=1)
    result = StreamRunner(tmp_path / "cut").run(resumed, stream, resume=True)
    assert (result.matrix.correct == expected.matrix.correct).all()
    for name, tensor in whole.learner_state().items():
        assert torch.equal(tensor, resumed.learner_state()[name]), name


@pytest.mark.parametrize("change", ["stream", "learner", "seed", "nothing there"])
def test_resuming_something_else_is_an_error(tmp_path, change):
    StreamRunner(tmp_path).run(learner(), gaussian_stream(tasks=2))
    stream = gaussian_stream(tasks=2, seed=1) if change == "stream" else gaussian_stream(tasks=2)
    other = learner(head_lr=1.0) if change == "learner" else learner()
    runner = StreamRunner(
        tmp_path / "x" if change == "nothing there" else tmp_path, seed=int(change == "seed")
    )
    with pytest.raises(UserError, match=change if change in ("learner", "seed", "stream") else "nothing to"):
        runner.run(other, stream, resume=True)


def test_a_failed_write_keeps_the_checkpoint_before(tmp_path, monkeypatch):
    stream = gaussian_stream(tasks=2)
    StreamRunner(tmp_path).run(learner(), stream)
    before = (tmp_path / "last.ckpt").read_bytes()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match="No space left"):
        StreamRunner(tmp_path).run(learner(), stream)
    assert (tmp_path / "last.ckpt").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_task_shows_no_other_task():
    stream = gaussian_stream()
    seen = []

    class Looks(FineTuning):
        def begin_task(self, task):
            super().begin_task(task)
            seen.append((set(task.classes), set(task.train.labels.tolist())))
            assert not any(isinstance(value, type(stream)) for value in vars(task).values())

    StreamRunner().run(Looks(ToyEncoder()), stream)
    assert seen == [({2 * t, 2 * t + 1},) * 2 for t in range(4)]


def test_the_base_is_neither_changed_nor_written(tmp_path):
    encoder = ToyEncoder()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    module: Learner = FineTuning(encoder)
    StreamRunner(tmp_path).run(module, gaussian_stream(tasks=2))
    assert all(torch.equal(before[name], tensor) for name, tensor in encoder.state_dict().items())
    assert list(module.learner_state()) == ["head.weight", "head.bias"]
    full = FineTuning(ToyEncoder(), tunes="full")
    assert "backbone.model.0.weight" in full.learner_state()
