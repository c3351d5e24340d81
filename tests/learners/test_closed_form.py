"""Learners in closed form: over a stream, resumed, with and without first-task adaptation."""

import pytest
import torch

from moe_adapt.checks import ToyEncoder, gaussian_stream
from moe_adapt.errors import UserError
from moe_adapt.learners import FeCam, NearestMean, RanPac, Ridge, Slda, WhitenedMean
from moe_adapt.learners.heads import RidgeHead
from moe_adapt.streams.arrays import ArrayStream
from moe_adapt.training.stream import StreamRunner
from moe_adapt.tuner import RoutedLoraConfig

LEARNERS = {
    "ncm": NearestMean,
    "slda": Slda,
    "slda, streaming": lambda encoder: Slda(encoder, rule="streaming"),
    "ridge": Ridge,
    "fecam": FeCam,
    "ranpac": lambda encoder: RanPac(encoder, proj_dim=40),
    "whitened_mean": WhitenedMean,
}


@pytest.mark.parametrize("name", LEARNERS)
def test_learns_without_forgetting_and_trains_nothing(name):
    learner = LEARNERS[name](ToyEncoder())
    result = StreamRunner().run(learner, gaussian_stream())
    assert result.matrix.rates()[3].mean() > 0.8
    assert [task["steps"] for task in result.tasks] == [0] * 4
    assert not any(p.requires_grad for p in learner.parameters())


@pytest.mark.parametrize("name", LEARNERS)
def test_resuming_ends_with_the_same_bits(name, tmp_path):
    stream = gaussian_stream()
    whole, early = LEARNERS[name](ToyEncoder()), LEARNERS[name](ToyEncoder())
    StreamRunner().run(whole, stream)
    for index in range(2):
        task = stream.task(index)
        early.begin_task(task)
        early.learn_task(task, Pass(stream))
    late = LEARNERS[name](ToyEncoder())
    late.restore(early.history, early.learner_state())
    for index in range(2, 4):
        task = stream.task(index)
        late.begin_task(task)
        late.learn_task(task, Pass(stream))
    for key, value in whole.learner_state().items():
        torch.testing.assert_close(late.learner_state()[key], value, rtol=1e-12, atol=1e-12)


class Pass:
    """A run that only passes over data."""

    def __init__(self, stream):
        self.stream = stream

    def batches(self, data, batch_size=None):
        yield self.stream.collate([data[i] for i in range(len(data))])


@pytest.mark.parametrize("name", ["ncm", "slda", "fecam", "whitened_mean"])
def test_the_order_of_the_tasks_does_not_matter(name):
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(6, 8, generator=generator)
    labels = torch.arange(6).repeat(20)
    x = centres[labels] + 0.7 * torch.randn(120, 8, generator=generator)
    arrays = {"x_train": x, "y_train": labels, "x_test": x, "y_test": labels}
    found = []
    for order_seed in (None, 1993):
        learner = LEARNERS[name](ToyEncoder())
        stream = ArrayStream({k: v.numpy() for k, v in arrays.items()}, increment=2, order_seed=order_seed)
        StreamRunner().run(learner, stream)
        with torch.no_grad():
            scores = learner.scores({"features": x})
        found.append(scores[:, [stream.class_names.index(str(c)) for c in range(6)]])
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)


def config():
    return RoutedLoraConfig(method="lora", target_modules=["0", "2"], r=2, alpha=4)


def test_ranpac_adapts_on_the_first_task_only():
    stream = gaussian_stream()
    encoder = ToyEncoder()
    before = {name: p.clone() for name, p in encoder.model.named_parameters()}
    learner = RanPac(encoder, tuner=config(), proj_dim=40, epochs=3)
    adapters = []
    original = learner.end_task

    def note(task, run):
        original(task, run)
        adapters.append({n: t.clone() for n, t in learner.learner_state().items() if "moe_adapt_" in n})

    learner.end_task = note
    result = StreamRunner().run(learner, stream)
    assert [task["steps"] > 0 for task in result.tasks] == [True, False, False, False]
    assert len(adapters[0]) == 4 and any(t.any() for n, t in adapters[0].items() if "moe_adapt_B" in n)
    for later in adapters[1:]:
        assert all(torch.equal(later[name], value) for name, value in adapters[0].items())
    assert all(
        torch.equal(p, before[n.replace(".base_layer", "").removeprefix("base_model.model.")])
        for n, p in encoder.model.named_parameters()
        if "moe_adapt_" not in n
    )
    assert result.matrix.rates()[3].mean() > 0.8
    assert not any(name.startswith("first_head") for name in learner.learner_state())


def test_ranpac_cannot_adapt_to_kept_features():
    x, labels = torch.randn(8, 8).numpy(), torch.arange(4).repeat(2).numpy()
    stream = ArrayStream({"x_train": x, "y_train": labels, "x_test": x, "y_test": labels}, increment=2)
    with pytest.raises(UserError, match="computed before"):
        StreamRunner().run(RanPac(ToyEncoder(), tuner=config(), proj_dim=4), stream)


@pytest.mark.parametrize("rule", ["gcv", "grid"])
def test_lambda_is_chosen_task_by_task(rule):
    learner = Ridge(ToyEncoder(), lam=rule)
    StreamRunner().run(learner, gaussian_stream())
    assert isinstance(learner.head, RidgeHead)
    assert float(learner.head.lam) != 1.0
