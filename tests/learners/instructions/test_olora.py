"""O-LoRA: the penalty by a loop, the sum of LoRAs, and old ones that do not move."""

import pytest
import torch

from moe_adapt.errors import UserError
from moe_adapt.training.stream import StreamRunner
from tests.learners.instructions.toys import learner, stream
from tests.learners.passes import begin, first, whole

STREAM = stream()


def in_task_three(**options):
    built = learner("olora", **options)
    begin(built, first(STREAM, 3))
    generator = torch.Generator().manual_seed(1)
    for name, tensor in built.state_dict().items():
        if "moe_adapt_" in name:
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return built


@pytest.mark.parametrize("weight", [0.5, 2.0])
def test_the_penalty_sums_squared_products_with_every_earlier_lora(weight):
    built = in_task_three(orthogonality=weight)
    expected = torch.zeros(())
    for layer in built.layers():
        old, new = layer.moe_adapt_A_frozen["default"], layer.moe_adapt_A["default"]
        assert (len(old), len(new)) == (2, 1)
        for task in range(2):
            for before in old[task]:
                for now in new[0]:
                    expected = expected + (before @ now) ** 2
    found = built.losses(whole(STREAM, 2))
    assert found.keys() == {"answer", "orthogonality"}
    torch.testing.assert_close(found["orthogonality"], weight * expected)


def test_the_penalty_moves_the_newest_lora_only_and_is_none_in_the_first_task():
    built = in_task_three()
    found = built.losses(whole(STREAM, 2))["orthogonality"]
    found.backward()
    gradients = {name for name, p in built.named_parameters() if p.grad is not None and p.grad.any()}
    assert gradients and all("moe_adapt_A.default" in name for name in gradients)
    assert all(len(layer.moe_adapt_A["default"].grad) == 1 for layer in built.layers())
    fresh = learner("olora")
    begin(fresh, first(STREAM, 1))
    assert fresh.losses(whole(STREAM, 0)).keys() == {"answer"}


def test_all_loras_are_added_up():
    built = in_task_three()
    layer = built.layers()[0]
    x = torch.randn(5, layer.in_features, generator=torch.Generator().manual_seed(0))
    a, b = layer.factors("default")
    scale = layer.scales["default"]
    expected = layer.base_layer(x) + scale * sum(x @ a[e].T @ b[:, e].T for e in range(3))
    torch.testing.assert_close(layer.eval()(x), expected, rtol=1e-4, atol=1e-4)


def test_earlier_loras_stay_bit_for_bit():
    built, seen = learner("olora", epochs=2, lr=5e-2), []
    end_task = built.end_task

    def noting(task, run):
        seen.append([[f.detach().clone() for f in layer.factors("default")] for layer in built.layers()])
        end_task(task, run)

    built.end_task = noting
    StreamRunner().run(built, STREAM)
    for task, factors in enumerate(seen):
        for layer, (a, b) in zip(built.layers(), factors, strict=True):
            now_a, now_b = layer.factors("default")
            assert torch.equal(now_a[: task + 1], a) and torch.equal(now_b[:, : task + 1], b)
            assert b[:, task].any(), "each task's own LoRA has learned"


def test_an_adapter_that_does_not_add_up_is_refused():
    with pytest.raises(UserError, match="lora_sum"):
        learner("olora", tuner={"selector": {"name": "dense"}})
