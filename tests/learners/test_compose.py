"""Composition as a learner: what is frozen, what is routed, what is kept, and where forgetting comes from."""

import pytest
import torch

from moe_adapt.checks import ToyEncoder, check_learner, gaussian_stream
from moe_adapt.errors import UserError
from moe_adapt.learners import Compose
from moe_adapt.routing.sample import LdaRouter
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
    mine = [name for name in first if "moe_adapt_" in name or name.startswith("moments.00000/")]
    assert any(name.endswith("moe_adapt_B.default") for name in mine)
    assert sum(name.startswith("moments.") for name in mine) == 4
    assert all(torch.equal(first[name], last[name]) for name in mine)
    assert torch.equal(first["heads.new_weight"], last["heads.frozen_weight"][:2])
    assert float(first["heads.new_weight"].abs().sum()) > 0
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


def test_routes_are_those_of_lda_on_the_pretrained_middle_block():
    stream = make_stream(text=True)
    learner, _, _ = learned(bert(epochs=1), stream)
    plain = ENCODERS["bert"]()

    def features(batch):
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        hidden = plain.model.eval()(**inputs, output_hidden_states=True).hidden_states[1]
        return block_features(hidden, batch["attention_mask"].bool()).detach()

    router = LdaRouter()
    for index in range(len(stream)):
        train = stream.task(index).train
        router.observe(features(stream.collate([train[row] for row in range(len(train))])), f"{index}")
    batch = samples(stream, len(stream) - 1)
    torch.testing.assert_close(learner.features(batch), features(batch))
    assert torch.equal(learner.route(batch), router.scores(features(batch)).argmax(dim=1))


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
    monkeypatch.setattr(learner, "route", lambda given: (given["labels"] // 2 + 1) % 3)
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
    with pytest.raises(UserError, match="shrinkage"):
        toy(shrinkage=2.0)
