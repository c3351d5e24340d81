"""Elastic weight consolidation: importances by a loop over samples, the pull by its formula."""

import pytest
import torch

from moe_adapt.checks import ToyEncoder, gaussian_stream
from moe_adapt.learners import Ewc
from tests.learners.passes import Pass, begin, first, whole

STREAM = gaussian_stream(tasks=3, train=6)
NAMES = ("head.weight", "head.bias")


def learner(tasks, **options):
    built = Ewc(ToyEncoder(), **{"fisher_labels": "data", **options})
    begin(built, first(STREAM, tasks))
    randomize(built)
    return built


def randomize(built, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in built.head.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)


def squares(built, batch):
    """Squared gradients of each sample by the head, weight [B, C, d] and bias [B, C], from (p - y) f."""
    features = built.encode(batch)
    error = built.head(features).softmax(1) - torch.eye(built.num_seen)[batch["labels"]]
    return (error.unsqueeze(2) * features.unsqueeze(1)).square().detach(), error.square().detach()


def end(built, index):
    built.end_task(STREAM.task(index), Pass(STREAM))


def test_importance_is_the_mean_of_squared_gradients_of_single_samples():
    built = learner(1)
    expected = squares(built, whole(STREAM, 0))
    end(built, 0)
    for name, square in zip(NAMES, expected, strict=True):
        torch.testing.assert_close(built.importance[name], square.mean(0))
        torch.testing.assert_close(built.anchor[name], dict(built.named_parameters())[name].data)


@pytest.mark.parametrize("decay", [1.0, 0.25, 0.0])
def test_importances_are_summed_with_decay_and_new_rows_start_at_none(decay):
    built = learner(1, decay=decay)
    end(built, 0)
    earlier = {name: built.importance[name].clone() for name in NAMES}
    built.begin_task(STREAM.task(1))
    randomize(built, seed=2)
    expected = squares(built, whole(STREAM, 1))
    end(built, 1)
    for name, square in zip(NAMES, expected, strict=True):
        total = square.mean(0)
        total[:2] += decay * earlier[name]
        torch.testing.assert_close(built.importance[name], total)


def test_the_pull_is_half_of_lambda_times_weighted_squares():
    built = learner(1, strength=7.0)
    end(built, 0)
    built.begin_task(STREAM.task(1))
    assert built.pull() == 0, "no weight has moved, and new rows have no importance"
    moved = {name: 0.1 * (1 + torch.arange(float(len(built.anchor[name])))) for name in NAMES}
    built.head.weight.data[:2] += moved["head.weight"][:, None]
    built.head.bias.data[:2] += moved["head.bias"]
    built.head.weight.data[2:] += 5.0
    expected = 3.5 * sum(
        (built.importance[name].reshape(2, -1).sum(1) * moved[name] ** 2).sum() for name in NAMES
    )
    torch.testing.assert_close(built.pull(), expected)
    found = built.losses(whole(STREAM, 1))
    assert found.keys() == {"cross_entropy", "ewc"}
    torch.testing.assert_close(found["ewc"], expected)


def test_the_first_task_has_no_pull():
    assert learner(1).losses(whole(STREAM, 0)).keys() == {"cross_entropy"}


@pytest.mark.parametrize(("labels", "surprised"), [("data", True), ("model", False)])
def test_labels_come_from_the_model_or_from_the_data(labels, surprised):
    """A model that is sure of the wrong class is not surprised by labels of its own."""
    built = learner(1, fisher_labels=labels)
    for parameter in built.head.parameters():
        parameter.data.zero_()
    built.head.bias.data[0] = 50.0
    end(built, 0)
    assert bool(built.importance["head.bias"].max() > 0.4) == surprised
    assert surprised or built.importance["head.bias"].max() < 1e-6


def test_so_many_samples_are_drawn_and_the_mean_is_over_them():
    built, sizes = learner(1, fisher_samples=5), []

    class Counting(Pass):
        def batches(self, data, batch_size=None):
            for batch in super().batches(data, batch_size):
                sizes.append((len(batch["labels"]), squares(built, batch)[1]))
                yield batch

    torch.manual_seed(0)
    built.end_task(STREAM.task(0), Counting(STREAM))
    assert [size for size, _ in sizes] == [1] * 5
    expected = torch.cat([square for _, square in sizes]).mean(0)
    torch.testing.assert_close(built.importance["head.bias"], expected)
