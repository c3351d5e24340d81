"""Instructions by composition: a router of discriminants on a middle block, and routes that are told."""

import pytest
import torch

from moe_adapt.checks import check_learner
from moe_adapt.errors import UserError
from moe_adapt.routing.sample import LdaRouter
from moe_adapt.training.stream import StreamRunner
from moe_adapt.tuner.blocks import block_features
from tests.learners.instructions.toys import learner, stream, writer
from tests.learners.passes import Pass, begin, whole

STREAM = stream()


def learned(tasks=3, **options):
    built = learner("compose_instructions", **options).eval()
    for index in range(tasks):
        begin(built, [STREAM.task(index)])
        with torch.no_grad():
            built.end_task(STREAM.task(index), Pass(STREAM))
    return built


def test_it_is_a_learner():
    check_learner(lambda: learner("compose_instructions"))


def test_the_guess_is_that_of_discriminants_over_training_prompts():
    built = learned()
    router = LdaRouter()
    for index in range(3):
        router.observe(built.answerer.embed(whole(STREAM, index)), f"{index:05d}")
    samples, tasks = STREAM.test_until(2)
    batch = STREAM.collate(list(samples))
    expected = router.scores(built.answerer.embed(batch)).argmax(dim=1)
    assert torch.equal(built.nearest(batch), expected)
    assert (expected == torch.from_numpy(tasks)).float().mean() > 0.8


def test_prompts_are_read_after_a_middle_block_without_adapters():
    built = learned(1, backbone=writer(), block=1)
    batch = STREAM.collate(list(STREAM.test_until(0)[0])[:3])
    found = built.features(batch)
    for name, tensor in built.state_dict().items():
        if "moe_adapt_B" in name:
            tensor.fill_(0.3)
    assert torch.equal(built.features(batch), found)
    inputs, kept = built.answerer, {}
    block = built.peft_tuner.model.model.layers[0]
    base = built.peft_tuner.model
    first = block.register_forward_hook(lambda m, a, output: kept.update(hidden=output))
    second = base.register_forward_pre_hook(
        lambda m, a, given: kept.update(mask=given["attention_mask"]), with_kwargs=True
    )
    with torch.no_grad(), inputs.without_adapter():
        inputs.run(batch)
    first.remove(), second.remove()
    hidden = kept["hidden"][0] if isinstance(kept["hidden"], tuple) else kept["hidden"]
    torch.testing.assert_close(found, block_features(hidden, kept["mask"].bool()))
    with pytest.raises(UserError, match="blocks 1 to 2, not 9"):
        learner("compose_instructions", backbone=writer(), block=9)


def test_the_report_has_the_matrix_of_routes_over_time():
    result = StreamRunner(seed=0, attribution=False).run(
        learner("compose_instructions", epochs=1), stream(3, train=12, test=12)
    )
    for index, entry in enumerate(result.tasks):
        report = entry["report"]
        shares = [report[f"routes/{task}"] for task in range(index + 1)]
        assert sum(shares) == pytest.approx(1.0)
        kept = [report[f"kept/{task}"] for task in range(index + 1)]
        assert report["routed_to_own_task"] == pytest.approx(sum(kept) / len(kept))
    assert result.tasks[0]["report"]["routed_to_own_task"] == 1.0
