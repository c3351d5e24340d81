"""The bridge to Avalanche, and our metrics beside its own. Importing it takes ten seconds, hence slow."""

from types import SimpleNamespace

import numpy as np
import peft
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
from moe_adapt.tuner import RoutedLoraConfig

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


def numbered(count: int, classes: int = 10):
    from avalanche.benchmarks.utils import as_classification_dataset

    class Numbered(torch.utils.data.Dataset):
        targets = [row % classes for row in range(count)]

        def __len__(self):
            return count

        def __getitem__(self, index):
            return torch.full((2,), float(index)), self.targets[index]

    return as_classification_dataset(Numbered())


def test_classes_that_every_task_numbers_from_zero(avalanche):
    from avalanche.benchmarks import nc_benchmark

    options = {"task_labels": True, "class_ids_from_zero_in_each_exp": True, "seed": 1}
    stream = from_avalanche(nc_benchmark(numbered(60), numbered(20), 5, **options), inputs="x")
    check_stream(stream)
    assert stream.num_seen == [2, 4, 6, 8, 10] and stream.scenario == "task"
    assert stream.class_names[:3] == ["0/0", "0/1", "1/0"]
    rows = [int(sample["x"][0]) % 10 for index in range(5) for sample in stream.task(index).train]
    labels = [sample["labels"] for index in range(5) for sample in stream.task(index).train]
    assert len(set(zip(rows, labels, strict=True))) == 10, "a class of ours is one of the ten"


def test_targets_under_several_task_labels_are_asked_about(avalanche):
    from avalanche.benchmarks import ni_benchmark

    benchmark = ni_benchmark(numbered(60, 4), numbered(20, 4), 3, task_labels=True)
    with pytest.raises(UserError, match="give classes_by_task=True"):
        from_avalanche(benchmark, inputs="x")
    assert from_avalanche(benchmark, inputs="x", classes_by_task=False).num_seen[-1] == 4


def test_one_complete_test_set(avalanche):
    from avalanche.benchmarks import ni_benchmark

    benchmark = ni_benchmark(numbered(60, 4), numbered(24, 4), 3, seed=0)
    assert len(benchmark.test_stream) == 1
    stream = from_avalanche(benchmark, inputs="x")
    check_stream(stream)
    assert stream.scenario == "blurry" and [len(rows) for rows in stream.test_rows] == [8, 8, 8]
    assert sorted(np.concatenate(stream.test_rows)) == list(range(24))
    assert all(set(stream.test_labels[rows]) == set(range(4)) for rows in stream.test_rows)


STRATEGIES = {
    "Naive": {},
    "Cumulative": {},
    "JointTraining": {},
    "EWC": {"ewc_lambda": 1.0},
    "LwF": {"alpha": 1.0, "temperature": 2.0},
    "SynapticIntelligence": {"si_lambda": 1.0},
    "MAS": {},
    "Replay": {"mem_size": 4},
    "GDumb": {"mem_size": 4},
    "AGEM": {"patterns_per_exp": 2, "sample_size": 2},
    "DER": {"mem_size": 4, "batch_size_mem": 2},
    "ER_ACE": {"mem_size": 4, "batch_size_mem": 2},
    "MIR": {"mem_size": 4, "subsample": 2, "batch_size_mem": 2},
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_their_strategies_train_on_our_stream(name, avalanche):
    from avalanche.training import supervised

    torch.manual_seed(0)
    stream = gaussian_stream(tasks=2, train=8)
    benchmark = to_avalanche(stream, inputs="x")
    x, y, task = benchmark.train_stream[1].dataset[0]
    assert task == 0 and y in stream.classes[1]
    model = torch.nn.Sequential(
        torch.nn.Linear(len(x), 8), torch.nn.ReLU(), torch.nn.Linear(8, stream.num_seen[-1])
    )
    strategy = getattr(supervised, name)(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.01),
        criterion=torch.nn.CrossEntropyLoss(),
        train_mb_size=8,
        train_epochs=1,
        eval_mb_size=8,
        evaluator=None,
        **STRATEGIES[name],
    )
    before = [p.detach().clone() for p in model.parameters()]
    experiences = [benchmark.train_stream] if name == "JointTraining" else benchmark.train_stream
    for experience in experiences:
        strategy.train(experience)
    strategy.eval(benchmark.test_stream)
    assert all(torch.isfinite(p).all() for p in strategy.model.parameters())
    assert any(not torch.equal(p, old) for p, old in zip(strategy.model.parameters(), before, strict=True))


class Spared(torch.nn.Module):
    """Two layers, and one that no forward calls."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.body, self.spare = torch.nn.Linear(width, 8), torch.nn.Linear(width, 8)
        self.head = torch.nn.Linear(8, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).relu())


@pytest.mark.parametrize("name", ["Naive", "LwF"])
def test_a_routed_model_inside_their_strategies(name, avalanche):
    from avalanche.training import supervised

    torch.manual_seed(0)
    stream = gaussian_stream(tasks=2, train=8)
    benchmark = to_avalanche(stream, inputs="x")
    width = len(benchmark.train_stream[0].dataset[0][0])
    base = Spared(width, stream.num_seen[-1])
    losses = [{"name": "z_loss", "weight": 2.0}]
    config = RoutedLoraConfig(
        r=2, num_experts=3, target_modules=["body", "spare"], modules_to_save=["head"], aux_losses=losses
    )
    model = peft.get_peft_model(base, config)
    model.base_model.add_aux_to_loss = True
    frozen = model.base_model.model.body.base_layer.weight.clone()
    before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    trained = [p for p in model.parameters() if p.requires_grad]
    strategy = getattr(supervised, name)(
        model=model,
        optimizer=torch.optim.SGD(trained, lr=0.05),
        criterion=torch.nn.CrossEntropyLoss(),
        train_mb_size=8,
        train_epochs=1,
        evaluator=None,
        **STRATEGIES[name],
    )
    with pytest.warns(UserWarning, match=r"1 adapted layers were not reached .*spare"):
        for experience in benchmark.train_stream:
            strategy.train(experience)
    strategy.eval(benchmark.test_stream)
    after = dict(strategy.model.named_parameters())
    still = [n for n, old in before.items() if torch.equal(after[n], old)]
    assert any("router" in n for n in before) and all(".spare." in n for n in still)
    assert torch.equal(strategy.model.base_model.model.body.base_layer.weight, frozen)


def test_task_labels_of_a_task_incremental_stream():
    stream = gaussian_stream(tasks=3)
    stream.scenario = "task"
    benchmark = to_avalanche(stream, inputs="x")
    assert [experience.dataset[0][2] for experience in benchmark.test_stream] == [0, 1, 2]
    assert [experience.task_label for experience in benchmark.train_stream] == [0, 1, 2]


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
                for column in list(zip(*experience.dataset, strict=True))[:2]
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
