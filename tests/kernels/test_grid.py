"""Every CPU path over grids of shapes, against float64, with a tolerance that knows no scale.

The error relative to the largest value may be twice that of the reference in the same dtype, plus 1e-6. The
reference counts as off by one rounding at least: over the few numbers of a single token it can be lucky.
"""

import itertools

import pytest
import torch

from moe_adapt.kernels import grouped, routed_lora
from tests.kernels.problems import gradients, problem, slots

PATHS = ["stacked", "grouped"]
#: Tokens, d, o, E, r, K.
SHAPES = [
    (0, 16, 16, 4, 8, 2),
    (1, 64, 64, 4, 8, 1),
    (17, 96, 80, 6, 16, 2),
    (32, 64, 128, 4, 8, 2),
    (33, 31, 29, 5, 3, 5),
    (40, 7, 3, 8, 1, 2),
    (100, 48, 40, 16, 5, 3),
]
BIG = [
    (64, 64, 64, 64, 8, 2),
    *((tokens, 2049, 128, 8, 16, 2) for tokens in (1, 31, 127, 128, 129, 2049)),
    *((64, 512, 513, 4, rank, 2) for rank in (1, 4, 64, 96, 128, 256)),
    *((100, 256, 1408, 64, 16, k) for k in (1, 6, 12, 64)),
    *((256, width, width, 8, 32, 2) for width in (100, 128, 256, 600)),
]


def error(ours, truth):
    if truth.numel() == 0:
        return 0.0
    return ((ours.double() - truth).abs().max() / truth.abs().max().clamp(min=1e-300)).item()


def results(base, x, a, b, index, weight, impl, dy=None):
    tensors = [x, a, b, weight, base]
    y = routed_lora(x, base, a, b, 0.73, index=index, weight=weight, impl=impl)
    return y, *gradients(y, tensors, dy)


def check(shape, dtype, impl, index=None):
    tokens, width, out, experts, rank, k = shape
    exact = problem(tokens, width, out, experts, rank)[:4]
    own_index, weight = slots(tokens, experts, k)
    index = own_index if index is None else index
    low = [tensor.detach().to(dtype).requires_grad_() for tensor in (*exact, weight)]
    low[4] = low[4].detach().float().requires_grad_()
    high = [tensor.detach().double().requires_grad_() for tensor in low]
    truth = results(*high[:4], index, high[4], "reference")
    plain = results(*low[:4], index, low[4], "reference")
    ours = results(*low[:4], index, low[4], impl)
    names = ("y", "x", "a", "b", "weight", "base")
    for name, own, other, true in zip(names, ours, plain, truth, strict=True):
        assert own.dtype == other.dtype and own.shape == other.shape, name
        allowed = 2 * max(error(other, true), torch.finfo(dtype).eps / 2) + 1e-6
        assert error(own, true) <= allowed, name


@pytest.mark.parametrize("impl", PATHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(shape, dtype, impl):
    check(shape, dtype, impl)


@pytest.mark.slow
@pytest.mark.parametrize("impl", PATHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", BIG, ids=str)
def test_big_shapes(shape, dtype, impl):
    check(shape, dtype, impl)


@pytest.mark.parametrize("impl", PATHS)
def test_all_tokens_to_one_expert_and_none_to_the_others(impl):
    check((40, 16, 24, 6, 8, 1), torch.float32, impl, index=torch.full((40, 1), 3))


@pytest.mark.parametrize("impl", PATHS)
@pytest.mark.parametrize("strides", ["expanded", "transposed"])
def test_any_strides_of_input_and_gradient(impl, strides):
    base, x, a, b, _ = problem(24, 16, 24, 4, 8, torch.float32)
    index, weight = slots(24, 4, 2, torch.float32)
    if strides == "expanded":
        dy = torch.ones(1, 1).expand(24, 24)
    else:
        dy = torch.randn(24, 24).t()
        x = x.detach().t().contiguous().t().requires_grad_()
    ours = results(base, x, a, b, index, weight, impl, dy)
    truth = results(base, x, a, b, index, weight, "reference", dy)
    for own, true in zip(ours, truth, strict=True):
        torch.testing.assert_close(own, true, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("impl", PATHS)
def test_a_selected_gate_of_zero_has_its_gradient(impl):
    base, x, a, b, _ = problem(6, 8, 8, 4, 4)
    index, weight = slots(6, 4, 2, empty=0)
    weight = torch.zeros_like(weight).requires_grad_()
    for own, true in zip(
        results(base, x, a, b, index, weight, impl),
        results(base, x, a, b, index, weight, "reference"),
        strict=True,
    ):
        torch.testing.assert_close(own, true, rtol=1e-12, atol=1e-14)
    assert (results(base, x, a, b, index, weight, impl)[4] != 0).all()


@pytest.mark.parametrize("impl", PATHS)
def test_a_second_run_gives_the_same_bits(impl):
    base, x, a, b, _ = problem(65, 32, 24, 8, 8, torch.float32)
    index, weight = slots(65, 8, 3, torch.float32)
    first = results(base, x, a, b, index, weight, impl)
    for _ in range(5):
        again = results(base, x, a, b, index, weight, impl)
        assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


@pytest.mark.parametrize("impl", PATHS)
def test_no_uninitialised_memory_is_read(impl):
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # fills torch.empty with NaN
    try:
        check((33, 31, 29, 5, 3, 2), torch.float32, impl)
        check((40, 16, 32, 64, 8, 2), torch.float32, impl)
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.utils.deterministic.fill_uninitialized_memory = before[1]


@pytest.mark.parametrize("impl", PATHS)
def test_autocast_computes_in_its_type_and_returns_gradients_in_theirs(impl):
    _, x, a, b, _ = problem(24, 16, 24, 4, 8, torch.float32)
    index, weight = slots(24, 4, 2, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = routed_lora(x, None, a, b, 2.0, index=index, weight=weight, impl=impl)
    assert y.dtype == torch.bfloat16
    exact = routed_lora(x, None, a, b, 2.0, index=index, weight=weight, impl="reference")
    tensors = [x, a, b, weight]
    for own, true in zip(gradients(y, tensors), gradients(exact, tensors), strict=True):
        assert own.dtype == torch.float32 and error(own, true.double()) < 3e-2
    assert error(y, exact.double()) < 2e-2


@pytest.mark.parametrize("impl", PATHS)
def test_nothing_as_wide_as_all_experts_outputs_is_kept(impl):
    tokens, width, out, experts, rank, k = 64, 32, 256, 16, 2, 2
    base, x, a, b, _ = problem(tokens, width, out, experts, rank, torch.float32)
    index, weight = slots(tokens, experts, k, torch.float32)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        routed_lora(x, base, a, b, 1.0, index=index, weight=weight, impl=impl)
    allowed = {x.numel(), a.numel(), b.numel()}
    assert kept and all(t.numel() in allowed or t.numel() <= tokens * experts * rank for t in kept)


@pytest.mark.parametrize("experts", [8, 64])
def test_permuting_tokens_permutes_the_results(experts):
    base, x, a, b, _ = (tensor.detach() for tensor in problem(48, 16, 24, experts, 8, torch.float32))
    index, weight = slots(48, experts, 2, torch.float32)
    order = torch.randperm(48, generator=torch.Generator().manual_seed(0))
    plain = routed_lora(x, base, a, b, 1.0, index=index, weight=weight)
    moved = routed_lora(x[order], base[order], a, b, 1.0, index=index[order], weight=weight[order])
    torch.testing.assert_close(moved, plain[order], rtol=1e-5, atol=1e-5)


def test_grouped_mm_and_the_sorted_loop_agree():
    if not grouped.grouped_mm_works("cpu", torch.float32):
        pytest.skip("grouped_mm does not work here")
    rows, factors = torch.randn(20, 16), torch.randn(5, 16, 8)
    index = torch.tensor(list(itertools.islice(itertools.cycle([0, 4, 2, 2]), 20))).view(10, 2)
    one, other = (grouped._Segments(index, 5, way) for way in (True, False))
    torch.testing.assert_close(one.rows_times(rows, factors), other.rows_times(rows, factors))
    left = torch.randn(20, 8)
    torch.testing.assert_close(one.products(left, rows, None), other.products(left, rows, None))
