"""The Triton kernels against float64: values and every gradient, tile by tile."""

import pytest
import torch

from moe_adapt.kernels import routed_lora
from moe_adapt.kernels.triton import tiles as sizes
from moe_adapt.kernels.triton.tiles import forced
from tests.kernels.triton.setting import DEVICE, MARKS, assert_as_exact, drawn, outcome, poisoned, widened

pytestmark = MARKS

#: Several tiles in every direction and a split sum, for shapes that would fit one tile.
SMALL = {"rows": 16, "ranks": 16, "features": 16, "splits": 2}
#: N, d, o, E, r; K; forced tiles.
CASES = [
    ((17, 40, 33, 4, 3), None, SMALL),
    ((17, 40, 33, 4, 3), 2, SMALL),
    ((40, 33, 48, 3, 8), None, {}),
    ((40, 33, 48, 3, 8), 3, {}),
    ((1, 32, 32, 4, 5), 1, {}),
    ((1, 17, 5, 2, 1), None, {}),
    ((33, 64, 16, 7, 4), 2, {"ranks": 16}),
    ((20, 16, 50, 2, 24), 1, {"ranks": 32}),
    ((20, 16, 50, 2, 24), None, {"ranks": 32}),
    ((16, 16, 16, 3, 16), 2, {"ranks": 16, "features": 16}),
    ((5, 48, 48, 1, 4), None, {}),
    ((35, 40, 24, 40, 2), 6, {"ranks": 32}),
]
#: The same where tokens are sorted by expert.
SORTED = [
    ((21, 24, 20, 9, 4), 2, {}),
    ((33, 24, 40, 9, 20), 2, {"rows": 16, "features": 32}),
    ((40, 20, 17, 12, 3), 3, {"rows": 16}),
    ((18, 16, 32, 40, 8), 1, {}),
    ((1, 16, 16, 9, 5), 2, {}),
]


@pytest.mark.parametrize("shape, k, tiles", CASES)
def test_as_exact_as_the_stacked_form(shape, k, tiles):
    tensors, options = drawn(shape, torch.float32, k)
    with forced(**tiles), poisoned():
        found = outcome(tensors, "triton", **options)
    truth = outcome(widened(tensors), "reference", **options)
    assert_as_exact(found, outcome(tensors, "stacked", **options), truth)


@pytest.mark.parametrize("shape, k, tiles", SORTED)
def test_sorted_tokens(shape, k, tiles, monkeypatch):
    monkeypatch.setattr(sizes, "GROUPED_COLUMNS", 0)
    test_as_exact_as_the_stacked_form(shape, k, tiles)


def test_many_slots_are_rounded_once(monkeypatch):
    """Next to 2048 the numbers of fp16 are 2 apart: any slot alone would be lost."""
    monkeypatch.setattr(sizes, "GROUPED_COLUMNS", 0)
    half = {"dtype": torch.float16, "device": DEVICE}
    x, base = torch.ones(2, 16, **half), torch.full((2, 16), 2048.0, **half)
    a, b = torch.full((32, 1, 16), 1 / 16, **half).requires_grad_(), torch.full((16, 32, 1), 0.9, **half)
    index = torch.arange(16, device=DEVICE).view(2, 8)
    index[1, 7] = -1
    y = routed_lora(x, base, a, b, 1.0, index=index, weight=torch.ones(2, 8, device=DEVICE), impl="triton")
    assert (y[0] == 2056).all() and (y[1] == 2054).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("k, experts, rank", [(None, 4, 8), (2, 4, 8), (1, 9, 64)])
def test_half_precision(dtype, k, experts, rank):
    tensors, options = drawn((24, 48, 40, experts, rank), dtype, k)
    with poisoned():
        found = outcome(tensors, "triton", **options)
    truth = outcome(widened(tensors), "reference", **options)
    assert_as_exact(found, outcome(tensors, "stacked", **options), truth)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("tiles", [{}, {"features": 64, "splits": 3}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_few_tokens_pair_by_pair(k, tiles, dtype):
    tensors, options = drawn((5, 150, 70, 4, 3), dtype, k)
    base, x, a, b, weight = tensors
    with torch.no_grad(), forced(**tiles), poisoned():
        found = routed_lora(x, base, a, b, 1.5, weight=weight, impl="triton", **options)
        plain = routed_lora(x, base, a, b, 1.5, weight=weight, impl="stacked", **options)
        base, x, a, b, weight = widened(tensors)
        truth = routed_lora(x, base, a, b, 1.5, weight=weight, impl="reference", **options)
    assert_as_exact([found], [plain], [truth])


def test_gates_with_an_index_for_a_few_tokens():
    (base, x, a, b, _), options = drawn((6, 32, 16, 5, 2), torch.float32, 2)
    index = options["index"]
    gates = torch.zeros(6, 5, device=DEVICE).scatter_add(
        1, index.clamp(min=0).long(), torch.rand(6, 2, device=DEVICE).masked_fill(index < 0, 0)
    )
    with torch.no_grad():
        dense = routed_lora(x, base, a, b, 2.0, gates=gates, impl="triton")
        hinted = routed_lora(x, base, a, b, 2.0, gates=gates, index=index, impl="triton")
    torch.testing.assert_close(hinted, dense)


def test_a_base_of_another_type_is_added_in_the_wider_one():
    (base, x, a, b, gates), _ = drawn((8, 16, 16, 2, 4), torch.float32, None)
    narrow = base.detach().half().requires_grad_()
    y = routed_lora(x, narrow, a, b, 1.5, gates=gates, impl="triton")
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, routed_lora(x, narrow.float(), a, b, 1.5, gates=gates, impl="reference"))
    (dbase,) = torch.autograd.grad(y.sum(), [narrow])
    assert dbase.dtype == torch.float16 and (dbase == 1).all()


def test_without_a_base():
    (base, x, a, b, gates), _ = drawn((8, 16, 24, 2, 4), torch.float32, None)
    y = routed_lora(x, None, a, b, 1.5, gates=gates, impl="triton")
    torch.testing.assert_close(
        y, routed_lora(x, torch.zeros_like(base), a, b, 1.5, gates=gates, impl="triton")
    )


def test_no_tokens():
    tensors, _ = drawn((0, 16, 8, 2, 4), torch.float32, None)
    y, *found = outcome(tensors, "triton", dy=torch.zeros(0, 8, device=DEVICE))
    assert y.shape == (0, 8)
    assert [tuple(gradient.shape) for gradient in found] == [tuple(tensor.shape) for tensor in tensors]
    assert not found[2].any() and not found[3].any()


@pytest.mark.parametrize("columns, k", [(0, 2), (512, 2), (0, 0)])
def test_no_experts_leave_the_base_bit_for_bit(columns, k, monkeypatch):
    monkeypatch.setattr(sizes, "GROUPED_COLUMNS", columns)
    (base, x, a, b, _), _ = drawn((18, 16, 24, 9, 4), torch.float32, None)
    index = torch.full((18, k), -1, device=DEVICE)
    weight = torch.full((18, k), float("nan"), device=DEVICE, requires_grad=True)
    y = routed_lora(x, base, a, b, 1.5, index=index, weight=weight, impl="triton")
    assert torch.equal(y, base)
    (dweight,) = torch.autograd.grad(y.sum(), [weight])
    assert (dweight == 0).all()
    with torch.no_grad():
        y = routed_lora(x[:3], base[:3], a, b, 1.5, index=index[:3], weight=weight[:3], impl="triton")
    assert torch.equal(y, base[:3])
