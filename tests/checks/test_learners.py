"""The public checks of learners and streams: they pass on ours and fail on what is broken."""

import numpy as np
import pytest
import torch

from moe_adapt.checks import ToyEncoder, check_learner, check_stream, gaussian_stream
from moe_adapt.learners import LEARNERS, FineTuning, Joint, Learner
from moe_adapt.streams import TaskStream, incremental_stream
from moe_adapt.streams.splits import Labelled
from moe_adapt.tuner import RoutedLoraConfig

#: Learners that need more than an encoder, or another one, have their check beside their other tests; so do
#: those that say themselves who is right.
OWN_CHECK = {"care", *(name for name in LEARNERS if LEARNERS.get(name).evaluate is not Learner.evaluate)}
OPTIONS = {"ranpac": {"proj_dim": 32}}


def adapter(method: str = "lora") -> RoutedLoraConfig:
    return RoutedLoraConfig(
        method=method, target_modules=["0", "2"], r=2, num_experts=3 if method != "lora" else 1
    )


@pytest.mark.parametrize("name", sorted(set(LEARNERS) - OWN_CHECK))
def test_every_registered_learner(name):
    spec = {"name": name, **OPTIONS.get(name, {})}
    check_learner(lambda: LEARNERS.build(spec, backbone=ToyEncoder()))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("fine_tuning", {"tuner": adapter("top_k")}),
        ("lwf", {"tuner": adapter()}),
        ("dark_replay", {"tunes": "full"}),
        ("ewc", {"tuner": adapter("top_k")}),
    ],
)
def test_learners_that_change_the_encoder(kind, options):
    check_learner(lambda: LEARNERS.get(kind)(ToyEncoder(), **options))


def broken(**methods):
    """A learner with some methods replaced."""
    return type("Broken", (FineTuning,), methods)


def by_batch_mean(self, batch):
    return FineTuning.scores(self, batch) + FineTuning.scores(self, batch).mean(dim=0)


def by_task(self, batch):
    scores = FineTuning.scores(self, batch)
    return (
        scores + batch["task_ids"][:, None] * torch.arange(scores.shape[1]) if "task_ids" in batch else scores
    )


def remembering(self, batch):
    self.head.bias.data += 0.001
    return FineTuning.scores(self, batch)


def random(self, batch):
    scores = FineTuning.scores(self, batch)
    return scores + 0.001 * torch.rand_like(scores)


def too_wide(self, batch):
    return torch.cat([FineTuning.scores(self, batch), torch.zeros(len(batch["x"]), 1)], dim=1)


def from_labels(self, batch):
    scores = FineTuning.scores(self, batch)
    if "labels" in batch and not self.training:
        scores = scores + torch.nn.functional.one_hot(batch["labels"], scores.shape[1])
    return scores


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (by_batch_mean, "depend on the batch"),
        (by_task, "task id"),
        (remembering, "changes no tensor"),
        (random, "at random"),
        (too_wide, "one column per class seen"),
        (from_labels, "labels at test time"),
    ],
)
def test_leaks_are_found(scores, message):
    with pytest.raises(AssertionError, match=message):
        check_learner(lambda: broken(scores=scores)(ToyEncoder()))


def test_state_outside_the_checkpoint_is_found():
    class Counts(FineTuning):
        shift = 0.0

        def end_task(self, task, run):
            self.shift = self.shift + 1.0

        def losses(self, batch):
            return {"shifted": super().losses(batch)["cross_entropy"] * (1 + self.shift) ** 3}

    with pytest.raises(AssertionError, match="resum"):
        check_learner(lambda: Counts(ToyEncoder(), optimizer=lambda groups: torch.optim.SGD(groups, lr=1.0)))


def test_a_changed_base_is_found():
    class Drifts(FineTuning):
        def end_task(self, task, run):
            self.backbone.model[0].weight.mul_(1.01)

    with pytest.raises(AssertionError, match="pretrained tensor"):
        check_learner(lambda: Drifts(ToyEncoder()))


def test_a_forgotten_argument_is_found():
    class Forgets(FineTuning):
        def __init__(self, backbone, size=3):
            super().__init__(backbone)

    with pytest.raises(AssertionError, match="'size'"):
        check_learner(lambda: Forgets(ToyEncoder()))


def test_joint_is_tested_once():
    check_learner(lambda: Joint(ToyEncoder(), epochs=2))


def labelled() -> Labelled:
    labels = np.tile(np.arange(6), 4)
    domains = np.repeat(np.array(["a", "b"], dtype=object), 12)
    return Labelled([{"x": torch.ones(1) * row} for row in range(24)], labels, domains)


@pytest.mark.parametrize("scenario", ["class", "task", "domain", "blurry"])
def test_our_streams(scenario):
    data = labelled()
    options = {} if scenario == "domain" else {"increment": 4}
    check_stream(incremental_stream(data, data, list("pqrstu"), scenario=scenario, **options))


def test_a_row_in_two_tasks_is_found():
    data = labelled()
    rows = [np.arange(12), np.arange(11, 24)]
    stream = TaskStream(
        "blurry", data.inputs, data.inputs, rows, rows, data.labels, data.labels, list("pqrstu")
    )
    with pytest.raises(AssertionError, match="in two tasks"):
        check_stream(stream)


def test_samples_that_change_are_found():
    class Noise(torch.utils.data.Dataset):
        def __len__(self):
            return 24

        def __getitem__(self, row):
            return {"x": torch.rand(2)}

    data = labelled()._replace(inputs=Noise())
    with pytest.raises(AssertionError, match="the same whenever it is read"):
        check_stream(incremental_stream(data, data, list("pqrstu"), increment=3))
    check_stream(gaussian_stream())
