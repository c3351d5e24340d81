"""The bridge to Avalanche, and our metrics beside its own. Importing it takes ten seconds, hence slow."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from moe_adapt.checks import ToyEncoder, check_stream, gaussian_stream
from moe_adapt.errors import UserError
from moe_adapt.evaluation.continual import backward_transfer, forgetting_initial
from moe_adapt.learners import FineTuning
from moe_adapt.streams import TaskStream, incremental_stream
from moe_adapt.streams.avalanche import from_avalanche, to_avalanche
from moe_adapt.streams.splits import Labelled
from moe_adapt.training.stream import StreamRunner

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"),
]


@pytest.fixture(scope="module", autouse=True)
def avalanche():
    return pytest.importorskip("avalanche", reason="needs the extra avalanche")


def test_there_and_back_is_the_same_stream():
    stream = gaussian_stream(tasks=3)
    back = from_avalanche(to_avalanche(stream, inputs="x"), inputs="x")
    check_stream(back)
    assert back.scenario == "class"
    for index in range(3):
        ours, theirs = stream.task(index).train, back.task(index).train
        assert (ours.labels == theirs.labels).all()
        assert torch.equal(ours[4]["x"], theirs[4]["x"])
    assert (stream.test_until(2)[1] == back.test_until(2)[1]).all()


def test_classes_in_another_order_lead_back():
    labels = np.tile(np.arange(6), 3)
    data = Labelled([{"x": torch.full((1,), float(row % 6))} for row in range(18)], labels)
    stream = incremental_stream(data, data, list("abcdef"), increment=4)
    benchmark = to_avalanche(stream, inputs="x")
    assert [len(e.classes_in_this_experience) for e in benchmark.train_stream] == [4, 2]
    back = from_avalanche(benchmark, inputs="x")
    assert [stream.class_names[int(name)] for name in back.class_names] == stream.class_names


def test_their_benchmark_and_loader(avalanche):
    from avalanche.benchmarks.scenarios import class_incremental_benchmark
    from avalanche.benchmarks.utils import as_classification_dataset

    class Data(torch.utils.data.Dataset):
        targets = [3, 1, 2, 0] * 5

        def __len__(self):
            return 20

        def __getitem__(self, index):
            return torch.full((2,), float(index)), self.targets[index]

    data = {"train": as_classification_dataset(Data()), "test": as_classification_dataset(Data())}
    benchmark = class_incremental_benchmark(data, class_order=[2, 3, 0, 1], num_classes_per_exp=[2, 2])
    stream = from_avalanche(benchmark, inputs="x")
    check_stream(stream)
    assert sorted(stream.class_names[:2]) == ["2", "3"]
    sample = stream.task(1).train[0]
    assert Data.targets[int(sample["x"][0])] == int(stream.class_names[sample["labels"]])


def test_mistakes():
    with pytest.raises(UserError, match="no 'pixel_values'"):
        to_avalanche(gaussian_stream(tasks=2))
    data = [{"x": torch.zeros(1)}] * 2
    rows = [np.array([0]), np.array([1])]
    with pytest.raises(UserError, match="need classes"):
        to_avalanche(TaskStream("instruction", data, data, rows, rows))


class StubStrategy(SimpleNamespace):
    """What Avalanche's evaluation plugin reads of a strategy."""


def test_metrics_equal_those_of_avalanche(avalanche):
    from avalanche.evaluation.metrics import accuracy_metrics, bwt_metrics, forgetting_metrics
    from avalanche.training.plugins import EvaluationPlugin
    from avalanche.training.plugins.clock import Clock

    stream = gaussian_stream(tasks=4, spread=1.5)
    benchmark = to_avalanche(stream, inputs="x")
    torch.manual_seed(0)
    learner = FineTuning(ToyEncoder(), epochs=2, lr=0.05)
    plugin = EvaluationPlugin(
        accuracy_metrics(experience=True),
        forgetting_metrics(experience=True, stream=True),
        bwt_metrics(stream=True),
        loggers=[],
    )
    strategy = StubStrategy(
        clock=Clock(), plugins=[], device="cpu", is_training=False, is_eval=True, loss=torch.zeros(()),
        current_eval_stream=benchmark.test_stream, mb_task_id=None, experience=None,
    )  # fmt: skip
    found: dict[str, float] = {}

    def step(index: int) -> None:
        strategy.is_training, strategy.is_eval = True, False
        strategy.experience = benchmark.train_stream[index]
        plugin.before_training(strategy)
        plugin.before_training_exp(strategy)
        plugin.after_training_exp(strategy)
        plugin.after_training(strategy)
        strategy.is_training, strategy.is_eval = False, True
        plugin.before_eval(strategy)
        for experience in benchmark.test_stream[: index + 1]:
            strategy.experience = experience
            plugin.before_eval_exp(strategy)
            x, y = (
                torch.stack(list(map(torch.as_tensor, column)))
                for column in zip(*experience.dataset, strict=True)
            )
            with torch.no_grad():
                strategy.mb_output = learner.eval().scores({"x": x})
            strategy.mb_y, strategy.mb_task_id = y, torch.zeros_like(y)
            plugin.before_eval_iteration(strategy)
            plugin.after_eval_iteration(strategy)
            plugin.after_eval_exp(strategy)
        plugin.after_eval(strategy)
        found.update(plugin.get_last_metrics())

    end_task = type(learner).end_task

    def watched(task, run):
        end_task(learner, task, run)
        step(task.index)

    learner.end_task = watched
    result = StreamRunner().run(learner, stream)

    def value(start: str, *parts: str) -> float:
        (name,) = [key for key in found if key.startswith(start) and all(part in key for part in parts)]
        return found[name]

    rates = result.matrix.rates()
    for task in range(4):
        assert value("Top1_Acc_Exp", f"Exp{task:03d}") == pytest.approx(rates[3, task])
    for task in range(3):
        assert value("ExperienceForgetting", f"Exp{task:03d}") == pytest.approx(
            rates[task, task] - rates[3, task]
        )
    assert value("StreamForgetting") == pytest.approx(forgetting_initial(result.matrix))
    assert value("StreamBWT") == pytest.approx(backward_transfer(result.matrix))
