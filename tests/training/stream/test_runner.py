import itertools
import json
import re
import time

import numpy as np
import pytest
import torch

from moe_adapt.checks.toys import ToyEncoder, gaussian_stream
from moe_adapt.errors import UserError
from moe_adapt.learners import FineTuning, Joint, Learner
from moe_adapt.training.stream import StreamRunner
from moe_adapt.training.stream import evaluate as evaluation
from moe_adapt.training.stream.report import write_report


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


@pytest.mark.parametrize(
    ("checkpoint_at", "kept"), [("all", 2), ("every=2", 2), ("geometric", 2), ("auto", 1)]
)
def test_a_stopped_run_goes_on_to_the_same_result(tmp_path, checkpoint_at, kept, monkeypatch):
    monkeypatch.setattr(time, "perf_counter", itertools.count().__next__)  # every write takes a tick
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
        StreamRunner(tmp_path / "cut", checkpoint_at=checkpoint_at).run(stopping, stream)
    content = torch.load(tmp_path / "cut" / "last.ckpt", weights_only=True)
    assert len(json.loads(content["history"])) == kept
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
    stream = gaussian_stream(tasks=3)
    expected = StreamRunner().run(learner(), stream)
    save = torch.save
    calls = []

    def full(content, file):
        calls.append(content["history"])
        save(content, file)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match="no space left"):
        StreamRunner(tmp_path, checkpoint_at="all").run(learner(), stream)
    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert len(json.loads(content["history"])) == 1
    assert not list(tmp_path.rglob("*.tmp"))
    result = StreamRunner(tmp_path).run(learner(seed=1), stream, resume=True)
    assert (result.matrix.correct == expected.matrix.correct).all()


@pytest.mark.parametrize("killed", [False, True], ids=["nothing lost", "killed before the result"])
def test_resuming_after_the_last_task_leaves_the_finished_result(tmp_path, killed):
    stream = gaussian_stream(tasks=2)
    StreamRunner(tmp_path, checkpoint_at="all").run(learner(), stream)
    whole = {name: (tmp_path / name).read_bytes() for name in ("result.json", "tasks.csv", "last.ckpt")}
    if killed:
        running = json.loads(whole["result.json"]) | {"status": "running", "metrics": {}}
        (tmp_path / "result.json").write_text(json.dumps(running))
        (tmp_path / "tasks.csv").unlink()
    StreamRunner(tmp_path, checkpoint_at="all").run(learner(seed=1), stream, resume=True)
    assert {name: (tmp_path / name).read_bytes() for name in whole} == whole


def test_a_run_does_not_write_over_another(tmp_path):
    stream = gaussian_stream(tasks=2)
    StreamRunner(tmp_path).run(learner(), stream)
    before = (tmp_path / "result.json").read_bytes()
    with pytest.raises(UserError, match="already holds a stream run"):
        StreamRunner(tmp_path).run(learner(), stream)
    assert (tmp_path / "result.json").read_bytes() == before
    StreamRunner(tmp_path).run(learner(), stream, overwrite=True)


def test_files_of_a_run(tmp_path):
    stream = gaussian_stream(tasks=3)
    result = StreamRunner(tmp_path, eval_at="every=2").run(learner(), stream)
    content = json.loads((tmp_path / "result.json").read_text())
    assert content["status"] == "finished"
    assert content["accuracy_matrix"]["correct"] == result.matrix.correct.tolist()
    assert content["accuracy_matrix"]["correct"][0] == [-1, -1, -1]
    assert "average_incremental_accuracy@2" in content["metrics"]
    assert content["costs"]["forwards_per_sample"] == 1.0
    assert content["manifest"]["stream"]["fingerprint"] == stream.fingerprint()
    predictions = np.load(tmp_path / "predictions" / "0002.npy")
    examples, tasks = stream.test_until(2)
    right = np.bincount(tasks[predictions == examples.labels], minlength=3)
    assert right.tolist() == result.matrix.correct[2].tolist()
    assert sum(content["class_counts"]["correct"]) == right.sum()
    assert len((tmp_path / "tasks.csv").read_text().splitlines()) == 4


def test_features_computed_once_give_the_same_result(tmp_path):
    stream = gaussian_stream()
    direct = StreamRunner().run(learner(), stream)
    for forwards in (280, 0):
        runner = StreamRunner(tmp_path / str(forwards), cache_features=True, cache_dir=tmp_path / "features")
        result = runner.run(learner(), stream)
        assert (result.matrix.correct == direct.matrix.correct).all()
        assert result.manifest["features"]["forwards"] == forwards
        assert result.costs()["forwards_per_sample"] == 0
    other = FineTuning(ToyEncoder(seed=1), epochs=2, lr=0.05)
    runner = StreamRunner(cache_features=True, cache_dir=tmp_path / "features")
    assert runner.run(other, stream).manifest["features"]["forwards"] == 280


def test_features_of_a_trained_encoder_are_refused():
    with pytest.raises(UserError, match="trains its encoder"):
        StreamRunner(cache_features=True).run(FineTuning(ToyEncoder(), tunes="full"), gaussian_stream())


def test_tests_use_one_loader_and_count_forwards(monkeypatch):
    made = []
    original = evaluation.loader
    monkeypatch.setattr(evaluation, "loader", lambda *args: made.append(args) or original(*args))
    module = learner()
    StreamRunner().run(module, gaussian_stream())
    assert len(made) == 4


def test_the_report_needs_no_other_file(tmp_path):
    stream = gaussian_stream(tasks=3)
    StreamRunner(tmp_path / "joint").run(Joint(ToyEncoder(), epochs=2), stream)
    result = StreamRunner(tmp_path / "own").run(learner(), stream)
    text = write_report(tmp_path / "own", result, [tmp_path / "joint"]).read_text()
    assert text.count("<svg") == 2
    assert not re.search(r'(src|href)="(?!data:)', text)
    for heading in ("Accuracy by task", "Forgetting", "Costs", "Joint (joint)", 'class="verdict"'):
        assert heading in text
    StreamRunner(tmp_path / "other").run(learner(), gaussian_stream(tasks=2))
    with pytest.raises(UserError, match="of another stream"):
        write_report(tmp_path / "own", result, [tmp_path / "other"])
    with pytest.raises(UserError, match="there is no result"):
        write_report(tmp_path / "own", result, [tmp_path / "nowhere"])


@pytest.mark.parametrize("schedule", ["every=0", "sometimes", "every=", ""])
def test_bad_schedules(schedule):
    with pytest.raises(UserError, match="checkpoint_at"):
        StreamRunner(checkpoint_at=schedule)
    with pytest.raises(UserError, match="eval_at"):
        StreamRunner(eval_at=schedule).run(learner(), gaussian_stream(tasks=2))


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
