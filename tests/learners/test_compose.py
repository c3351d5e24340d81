"""Composition as a learner: what is frozen, what is routed, what is kept, and where forgetting comes from."""

import pytest
import torch

from moe_adapt.checks import ToyEncoder, check_learner, gaussian_stream
from moe_adapt.errors import UserError
from moe_adapt.learners import Compose
from moe_adapt.learners.heads.slda import SldaHead
from moe_adapt.routing.sample import LdaRouter
from moe_adapt.streams import TaskRecord
from moe_adapt.training.stream import StreamRunner
from moe_adapt.tuner import RoutedLoraConfig
from moe_adapt.tuner.blocks import block_features
from tests.learners.care.encoders import ENCODERS, make_stream

STREAM = gaussian_stream(tasks=3, train=10, test=6)
LORA = RoutedLoraConfig(method="lora", target_modules=["0", "2"], r=2)
TEXT_LORA = RoutedLoraConfig(method="lora", target_modules=["query", "value"], r=2)
TRAINED = {"epochs": 3, "batch_size": 10, "lr": 0.05}


def toy(**options):
    torch.manual_seed(0)
    return Compose(ToyEncoder(), **{"tuner": LORA, **TRAINED, **options})


def bert(**options):
    encoder = ENCODERS["bert"]()
    torch.manual_seed(0)
    return Compose(encoder, TEXT_LORA, **{**TRAINED, "lr": 0.02, **options})


def samples(stream, until):
    examples, _ = stream.test_until(until)
    return stream.collate([examples[row] for row in range(len(examples))])


def learned(learner, stream):
    """The learner after a stream, the result, and its state after every task."""
    states = []

    def remember(task, run):
        type(learner).end_task(learner, task, run)
        states.append({name: tensor.clone() for name, tensor in learner.learner_state().items()})

    learner.end_task = remember
    result = StreamRunner(attribution=False).run(learner, stream)
    del learner.end_task
    return learner.eval(), result, states


@pytest.fixture(scope="module")
def after():
    return learned(toy(), STREAM)


@pytest.mark.parametrize("options", [{"tuner": None}, {}])
def test_the_contract_of_learners(options):
    check_learner(lambda: toy(epochs=1, **options))


@pytest.mark.slow
def test_the_contract_on_an_encoder_with_blocks():
    check_learner(lambda: bert(epochs=1), make_stream(text=True))


def test_what_a_task_learned_never_changes(after):
    _, _, states = after
    first, last = states[0], states[-1]
    mine = [name for name in first if "moe_adapt_" in name]
    assert any(name.endswith("moe_adapt_B.default") for name in mine)
    assert all(torch.equal(first[name], last[name]) for name in mine)
    assert torch.equal(first["router.means"], last["router.means"][:2])
    assert torch.equal(first["heads.new_weight"], last["heads.frozen_weight"][:2])
    other = last["backbone.model.base_model.model.0.moe_adapt_B.task_1"]
    assert not torch.equal(other, first["backbone.model.base_model.model.0.moe_adapt_B.default"])


def test_samples_go_to_one_task_and_are_answered_among_its_classes(after):
    learner, result, _ = after
    batch = samples(STREAM, 2)
    routes, scores = learner.route(batch), learner.scores(batch)
    inside = torch.arange(6) // 2 == routes[:, None]
    assert bool((scores[~inside] == 0).all())
    torch.testing.assert_close(scores.sum(dim=1), torch.ones(len(scores)))
    assert result.matrix.rates()[-1].mean() > 0.8


@pytest.mark.parametrize("by", ["tasks", "classes"])
def test_routes_are_those_of_lda_on_a_block_of_the_pretrained_model(by):
    stream = make_stream(text=True)
    learner, _, _ = learned(bert(epochs=1, block=1, route_by=by, normalize=False), stream)
    plain = ENCODERS["bert"]()

    def features(batch):
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        hidden = plain.model.eval()(**inputs, output_hidden_states=True).hidden_states[1]
        return block_features(hidden, batch["attention_mask"].bool()).detach()

    router, owners = LdaRouter(), []
    for index in range(len(stream)):
        task = stream.task(index)
        train = stream.collate([task.train[row] for row in range(len(task.train))])
        found, labels = features(train), train["labels"]
        parts = [labels == label for label in task.classes] if by == "classes" else [labels >= 0]
        for part in parts:
            router.observe(found[part], f"{len(owners):02d}")
            owners.append(index)
    batch = samples(stream, len(stream) - 1)
    torch.testing.assert_close(learner.features(batch), features(batch))
    rows = router.scores(features(batch)).softmax(dim=1)
    expected = torch.zeros(len(rows), len(stream)).index_add_(1, torch.tensor(owners), rows)
    torch.testing.assert_close(learner.task_probabilities(batch), expected, rtol=1e-3, atol=1e-4)


def test_classes_find_tasks_that_have_no_place_of_their_own():
    """Two tasks whose means are the same: the classes of one lie outside, those of the other inside."""
    torch.manual_seed(0)
    places = torch.tensor([-3.0, 3.0, -1.0, 1.0])  # of the classes; the first two are task 0
    labels = torch.arange(4).repeat_interleave(20)
    features = torch.zeros(80, 4)
    features[:, 0] = places[labels]
    features = features + 0.1 * torch.randn(80, 4)
    found = {}
    for by in ("classes", "tasks"):
        learner = toy(tuner=None, route_by=by, normalize=False)
        learner.history = [TaskRecord(0, "outer", (0, 1), 2), TaskRecord(1, "inner", (2, 3), 4)]
        learner.router = SldaHead(4, "oas")
        learner.router.update(features, labels if by == "classes" else labels // 2)
        routes = learner.route({"features": features, "labels": labels})
        found[by] = float((routes == labels // 2).double().mean())
    assert found["classes"] == 1.0 and found["tasks"] < 0.7


def test_candidates_answer_by_their_probabilities(after):
    learner, _, _ = after
    batch = samples(STREAM, 2)
    probabilities = learner.task_probabilities(batch)
    single = [learner.scores_by(batch, torch.full((len(probabilities),), task)) for task in range(3)]
    learner.candidates = 3
    try:
        mixed = learner.scores(batch)
    finally:
        learner.candidates = 1
    expected = sum(probabilities[:, task, None] * single[task] for task in range(3))
    torch.testing.assert_close(mixed, expected, rtol=1e-4, atol=1e-5)


def test_a_head_starts_as_discriminants_between_its_classes():
    learner, heads = toy(tuner=None), []
    keep = learner.losses

    def losses(batch):
        heads.append(learner.heads.whole("weight")[learner._rows(len(learner.history) - 1)].detach().clone())
        return keep(batch)

    learner.losses = losses
    learned(learner, STREAM)
    task = STREAM.task(0)
    train = STREAM.collate([task.train[row] for row in range(len(task.train))])
    reference = SldaHead(learner.backbone.width, "oas")
    reference.update(learner.encode(train), train["labels"])
    expected = reference.solution[0].float()
    torch.testing.assert_close(heads[0] / heads[0].norm(), expected / expected.norm(), rtol=1e-4, atol=1e-4)


def test_a_head_that_separates_its_samples_still_leaves_the_adapter_something_to_learn(after):
    first = after[2][0]
    changed = [tensor for name, tensor in first.items() if name.endswith("moe_adapt_B.default")]
    assert min(float(tensor.abs().max()) for tensor in changed) > 1e-3


def test_the_report_counts_routes_and_forgetting_is_misrouting_alone(after):
    learner, result, _ = after
    report = result.tasks[-1]["report"]
    batch = samples(STREAM, 2)
    routes, own = learner.route(batch), batch["labels"] // 2
    assert report["routed_to_own_task"] == pytest.approx(float((routes == own).double().mean()))
    for task in range(3):
        assert report[f"routes/{task}"] == pytest.approx(float((routes == task).double().mean()))
        assert report[f"kept/{task}"] == pytest.approx(float((routes[own == task] == task).double().mean()))
    assert result.tasks[0]["report"] == {"routed_to_own_task": 1.0, "routes/0": 1.0, "kept/0": 1.0}


def test_a_sample_that_went_astray_is_judged_within_its_own_task(after, monkeypatch):
    learner, _, _ = after
    batch = samples(STREAM, 2)
    within = torch.arange(6)[None] // 2 == batch["labels"][:, None] // 2
    right = learner.evaluate(batch, within)
    wrong = lambda given: torch.eye(3)[(given["labels"] // 2 + 1) % 3]  # noqa: E731
    monkeypatch.setattr(learner, "task_probabilities", wrong)
    astray = learner.evaluate(batch, within)
    assert not bool(astray.correct.any())
    assert torch.equal(astray.correct_within, right.correct_within)
    assert float(right.correct_within.double().mean()) > 0.8


def test_it_is_published_and_opened_again(after, tmp_path):
    learner, _, _ = after
    learner.save_pretrained(tmp_path / "composed")
    opened = Compose.from_pretrained(tmp_path / "composed", backbone=ToyEncoder())
    batch = samples(STREAM, 2)
    assert torch.equal(opened.route(batch), learner.route(batch))
    assert torch.equal(opened.scores(batch), learner.scores(batch))


def test_blocks_that_are_not_there():
    with pytest.raises(UserError, match="blocks 1 to 2, not 3"):
        bert(block=3)
    with pytest.raises(UserError, match="no list of blocks"):
        toy(block=1)
    for wrong in ({"shrinkage": 2.0}, {"route_by": "words"}, {"candidates": 0}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            toy(**wrong)
