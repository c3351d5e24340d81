"""`routed_lora` against its definition: values, gradients, the forms of routing, and what it refuses."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_adapt.errors import UserError
from moe_adapt.kernels import routed_lora
from tests.kernels.problems import definition, gradients, problem, slots

DENSE = ["reference", "stacked"]
IMPLEMENTATIONS = [*DENSE, "grouped"]


def run(base, x, a, b, gates, scale, impl, **options):
    """Compute by dense gates; every expert is listed where an implementation needs an index."""
    index = None if impl in (*DENSE, "auto") else torch.arange(b.shape[1]).expand(len(x), -1)
    return routed_lora(x, base, a, b, scale, gates=gates, index=index, impl=impl, **options)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@settings(max_examples=25)
@given(
    tokens=st.integers(0, 6),
    width=st.integers(1, 7),
    out=st.integers(1, 7),
    experts=st.integers(1, 6),
    rank=st.integers(1, 5),
    scale=st.floats(0.1, 4.0),
)
def test_equals_the_definition_with_all_gradients(impl, tokens, width, out, experts, rank, scale):
    tensors = problem(tokens, width, out, experts, rank)
    ours, truth = run(*tensors, scale, impl), definition(*tensors, scale)
    torch.testing.assert_close(ours, truth, rtol=1e-10, atol=1e-10)
    if tokens:
        for mine, true in zip(gradients(ours, tensors), gradients(truth, tensors), strict=True):
            torch.testing.assert_close(mine, true, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("experts", [1, 3])
def test_gradcheck(impl, experts):
    assert torch.autograd.gradcheck(
        lambda *args: run(*args, 1.5, impl), problem(4, 3, 5, experts, 2), fast_mode=False
    )


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_all_forms_of_routing_agree(impl):
    base, x, a, b, _ = problem(9, 5, 4, 6, 2)
    index, weight = slots(9, 6, 3)
    dense = torch.zeros(9, 6, dtype=torch.float64)
    for token in range(9):
        for slot, expert in enumerate(index[token].tolist()):
            if expert >= 0:
                dense[token, expert] = weight[token, slot].detach()
    truth = run(base, x, a, b, dense, 2.0, impl)
    sparse = routed_lora(x, base, a, b, 2.0, index=index, weight=weight, impl=impl)
    hinted = routed_lora(x, base, a, b, 2.0, gates=dense, index=index, impl=impl)
    torch.testing.assert_close(sparse, truth, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(hinted, truth, rtol=1e-12, atol=1e-12)
    (dweight,) = gradients(sparse, [weight])
    assert (dweight[index < 0] == 0).all() and (dweight[index >= 0] != 0).all()


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_an_expert_listed_twice_counts_with_the_sum_of_its_weights(impl):
    base, x, a, b, _ = problem(3, 5, 4, 4, 2)
    index = torch.tensor([[1, 1, 2]] * 3)
    weight = torch.tensor([[0.25, 0.5, 1.0]] * 3, dtype=torch.float64)
    dense = torch.tensor([[0.0, 0.75, 1.0, 0.0]] * 3, dtype=torch.float64)
    twice = routed_lora(x, base, a, b, 2.0, index=index, weight=weight, impl=impl)
    torch.testing.assert_close(twice, run(base, x, a, b, dense, 2.0, impl))


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_a_token_without_experts_gets_the_base_output_bit_for_bit(impl):
    base, x, a, b, _ = (tensor.detach() for tensor in problem(5, 4, 3, 6, 2, dtype=torch.float32))
    assert torch.equal(run(base, x, a, b, torch.zeros(5, 6), 2.0, impl), base)
    for slots_per_token in (2, 0):
        index = torch.full((5, slots_per_token), -1)
        weight = torch.full((5, slots_per_token), float("nan"), requires_grad=True)
        y = routed_lora(x, base, a.requires_grad_(), b, 2.0, index=index, weight=weight, impl=impl)
        assert torch.equal(y, base)
        found = torch.autograd.grad(y.sum(), [a, weight], materialize_grads=True)
        assert not any(gradient.any() for gradient in found)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    "trainable", [(False,) * 4, (False, False, True, True), (True, False, True, False), (True,) * 4]
)
def test_frozen_experts_get_no_gradient_and_pass_on_all_others(impl, trainable):
    tensors = problem(7, 5, 4, 4, 2)
    free = gradients(run(*tensors, 2.0, impl), tensors)
    held = gradients(run(*tensors, 2.0, impl, trainable=trainable), tensors)
    for name, one, other in zip(
        ("base", "x", "gates"), (free[i] for i in (0, 1, 4)), (held[i] for i in (0, 1, 4)), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12, msg=name)
    for expert, trained in enumerate(trainable):
        for free_part, held_part in (
            (free[2][expert], held[2][expert]),
            (free[3][:, expert], held[3][:, expert]),
        ):
            expected = free_part if trained else torch.zeros_like(free_part)
            torch.testing.assert_close(held_part, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("impl", ["auto", *IMPLEMENTATIONS])
def test_experts_may_share_their_down_projection(impl):
    base, x, a, b, gates = problem(7, 5, 4, 6, 2)
    one = a[:1].detach().requires_grad_()
    tensors, shared = [base, x, one, b, gates], one.expand(6, -1, -1)
    ours, truth = run(base, x, one, b, gates, 2.0, impl), definition(base, x, shared, b, gates, 2.0)
    torch.testing.assert_close(ours, truth, rtol=1e-10, atol=1e-10)
    for mine, true in zip(gradients(ours, tensors), gradients(truth, tensors), strict=True):
        torch.testing.assert_close(mine, true, rtol=1e-10, atol=1e-10)
    held = run(base, x, one, b, gates, 2.0, impl, trainable=[False] * 6)
    assert not gradients(held, [one, b])[0].any()


def test_a_shared_down_projection_is_not_copied():
    base, x, a, b, gates = problem(7, 32, 4, 6, 2, dtype=torch.float32)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        routed_lora(x, base, a[:1], b, 1.0, gates=gates)
    assert kept and not any(tensor.numel() == a.numel() for tensor in kept)


def test_one_expert_runs_the_reference_and_keeps_pefts_order():
    base, x, a, b, _ = (tensor.detach() for tensor in problem(8, 16, 12, 1, 4, dtype=torch.float32))
    ours = routed_lora(x, base, a, b, 1.3, gates=torch.ones(8, 1))
    assert torch.equal(ours, base + (x @ a[0].t()) @ b[:, 0].t() * 1.3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": torch.zeros(3, 4, 5)}, "x [N, d]"),
        ({"x": torch.zeros(3, 6)}, "do not fit together"),
        ({"b": torch.zeros(4, 2, 3)}, "do not fit together"),
        ({"a": torch.zeros(0, 2, 5), "b": torch.zeros(4, 0, 2)}, "at least one expert"),
        ({"base": torch.zeros(2, 4)}, "base has the shape"),
        ({"gates": torch.zeros(3, 4)}, "gates has the shape"),
        ({"gates": None}, "routing is given as"),
        ({"weight": torch.zeros(3, 1)}, "routing is given as"),
        ({"x": torch.zeros(3, 5, dtype=torch.bfloat16)}, "one floating-point type"),
        ({"gates": torch.full((3, 2), float("nan"))}, "not all finite"),
        ({"index": torch.tensor([[2]] * 3)}, "names the expert 2"),
        ({"index": torch.tensor([[-2]] * 3)}, "names the expert -2"),
        ({"index": torch.zeros(3, 1)}, "integer tensor"),
        ({"trainable": [True]}, "one flag per expert"),
        ({"impl": "staked"}, "Did you mean 'stacked'?"),
        ({"base": torch.zeros(3, 4, device="meta")}, "base is on meta"),
    ],
)
def test_bad_input_is_one_sentence(change, words):
    arguments = {
        "x": torch.zeros(3, 5),
        "base": torch.zeros(3, 4),
        "a": torch.zeros(2, 2, 5),
        "b": torch.zeros(4, 2, 2),
        "scale": 1.0,
        "gates": torch.zeros(3, 2),
    }
    routed_lora(**arguments)
    with pytest.raises(UserError) as error:
        routed_lora(**(arguments | change))
    assert words in str(error.value) and "\n" not in str(error.value)
