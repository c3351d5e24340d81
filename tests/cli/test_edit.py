"""`moe-adapt edit`: from a run and from an adapter, by every score, and what it refuses."""

import json
from pathlib import Path

import pytest
import torch

from moe_adapt.errors import UserError
from moe_adapt.evaluation.trace.file import load_trace
from moe_adapt.evaluation.trace.use import expert_use
from moe_adapt.runs.rebuild import load_data, load_module
from moe_adapt.serving.opening import open_model
from moe_adapt.training.expert_gradients import expert_utility
from moe_adapt.training.tracing import split_batches
from moe_adapt.tuner.layer import adapted_layers
from tests.hub.conftest import run  # noqa: F401  a fixture
from tests.runs.test_export import logits


def edited(run, folder):  # noqa: F811
    return open_model(folder, base=str(run.parent / "mini-bert")).model


def names(model):
    return [layer.specs["default"].names for layer in adapted_layers(model.base_model.model)]


def test_keeping_all_experts_of_a_run_is_the_run(moe_adapt, run):  # noqa: F811
    result = moe_adapt("edit", run, "merge", "--experts", 3, "--to", "same")
    assert result.code == 0, result.err
    assert torch.equal(logits(edited(run, "same")), logits(load_module(run).model))
    assert "3 experts each before, 3 after" in result.out
    assert json.loads(Path("same/answering.json").read_text())["class_names"] == ["goodbye", "hello"]


@pytest.mark.parametrize(
    "words",
    [
        ("merge", "--experts", 2, "--by", "norm", "--rank", 1),
        ("rehome", "--experts", 1, "--by", "random", "--seed", 3, "--alike", 0.1),
        ("copy", "--experts", 5, "--by", "adam", "--twin_exclusive"),
        ("prune", "--experts", 2, "--by", "gradient"),
    ],
)
def test_operations_and_scores(moe_adapt, run, words):  # noqa: F811
    result = moe_adapt("edit", run, *words, "--to", "edited")
    assert result.code == 0, result.err
    model = edited(run, "edited")
    assert {len(own) for own in names(model)} == {words[2]} and logits(model).isfinite().all()
    assert f"--model.tuner.num_experts {words[2]}" in result.out


def test_the_most_used_of_a_trace_stay_and_an_adapter_can_be_edited_again(moe_adapt, run):  # noqa: F811
    assert moe_adapt("trace", run, "--to", "trace", "--data", "train").code == 0
    assert moe_adapt("edit", run, "prune", "--experts", 2, "--to", "two").code == 0
    assert moe_adapt("edit", run, "prune", "--experts", 2, "--trace", "trace", "--to", "traced").code == 0
    use = expert_use(load_trace("trace"))
    expected = [[str(e) for e in range(3) if e != int(own.argmin())] for own in use.values()]
    assert names(edited(run, "traced")) == names(edited(run, "two")) == expected
    words = ("--base", run.parent / "mini-bert", "--by", "norm")
    again = moe_adapt("edit", "two", "merge", "--experts", 1, *words, "--to", "one")
    assert again.code == 0, again.err
    assert {len(own) for own in names(edited(run, "one"))} == {1}
    blind = moe_adapt("edit", "two", "merge", "--experts", 1, *words[:2], "--to", "blind")
    assert blind.code == 2 and "has no data" in blind.err
    other = moe_adapt("edit", "two", "prune", "--experts", 1, *words[:2], "--trace", "trace", "--to", "blind")
    assert other.code == 2 and "is not of this adapter" in other.err


def test_a_training_starts_from_an_edited_adapter(moe_adapt, run):  # noqa: F811
    assert moe_adapt("edit", run, "merge", "--experts", 2, "--to", "two").code == 0
    told = moe_adapt("edit", run, "merge", "--experts", 2, "--to", "two", "--overwrite").out
    shape = told.split("--start_from two ")[1].split()
    rows = run.parent / "greetings" / "train.jsonl"
    words = ["--model=SequenceClassifier", "--model.backbone", run.parent / "mini-bert"]
    words += ["--model.pooling=mean", "--model.tuner.method=top_k", "--model.tuner.r=2"]
    words += ["--model.tuner.target_modules=ffn", "--data=TextClassificationData", "--data.train", rows]
    words += ["--trainer.max_epochs=1", "--trainer.accelerator=cpu", "--trainer.limit_train_batches=1"]
    result = moe_adapt("fit", *words, "--start_from", "two", *shape, "--model.lr=0", "--out", "healed")
    assert result.code == 0, result.err
    # merging sets how large a share is in a buffer, which a training takes over with the weights
    torch.testing.assert_close(logits(load_module("healed", "last").model), logits(edited(run, "two")))


def test_a_threshold_may_leave_different_numbers(moe_adapt, run):  # noqa: F811
    result = moe_adapt("edit", run, "prune", "--threshold", 0.3, "--to", "few")
    assert result.code == 0, result.err
    use = expert_use_of(run)
    expected = [max(1, int((own / own.sum() >= 0.3).sum())) for own in use.values()]
    assert [len(own) for own in names(edited(run, "few"))] == expected


def expert_use_of(run):  # noqa: F811
    from moe_adapt.training.tracing import record_batches
    from moe_adapt.tuner.tracing import TraceRecorder

    module = load_module(run)
    recorder = TraceRecorder(module.tuner)
    record_batches(module, split_batches(load_data(run), "train"), recorder, 50)
    return expert_use(recorder.trace())


def test_the_gradient_is_that_of_the_loss(run):  # noqa: F811
    module, batches = load_module(run), list(split_batches(load_data(run), "train"))
    found = expert_utility(module, batches, "gradient")
    for parameter in module.parameters():
        parameter.grad = None
    (sum(module.task_loss(batch) for batch in batches) / len(batches)).backward()
    for layer in adapted_layers(module.tuner.model):
        a, b = layer.moe_adapt_A["default"].grad, layer.moe_adapt_B["default"].grad
        expected = a.double().square().sum(dim=(1, 2)) + b.double().square().sum(dim=(0, 2))
        torch.testing.assert_close(found[layer.site], expected, rtol=1e-4, atol=1e-12)
    with pytest.raises(UserError, match="no batches"):
        expert_utility(module, [], "gradient")
    module.tuner.freeze_experts([0])
    with pytest.raises(UserError, match="frozen experts, which have no gradient"):
        expert_utility(module, batches, "gradient")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("merge",), "say how many experts"),
        (("merge", "--experts", 2, "--threshold", 0.1), "say how many experts"),
        (("copy", "--threshold", 0.1), "--threshold is for merge and prune and rehome"),
        (("prune", "--experts", 2, "--rank", 1), "--rank is for merge, not for prune"),
        (("merge", "--experts", 2, "--by", "norm", "--trace", "x"), "leave it out with --by norm"),
        (("merge", "--experts", 9), "of 3 experts 1 to 3 can stay, not 9"),
        (("copy", "--experts", 2), "has 3 experts already"),
        (("prune", "--experts", 2, "--trace", "nowhere"), "there is no routing trace"),
        (("prune", "--threshold", 2), "share of a layer's use"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(moe_adapt, run, words, expected):  # noqa: F811
    result = moe_adapt("edit", run, *words, "--to", "edited")
    assert result.code == 2 and expected in result.err and len(result.err.splitlines()) == 1
    assert not Path("edited").exists()
