"""Gradients of the Triton kernels where they are easy to get wrong."""

import pytest
import torch

from moe_adapt.kernels import routed_lora
from moe_adapt.kernels.triton import tiles as sizes
from moe_adapt.kernels.triton.tiles import forced
from tests.kernels.triton.setting import DEVICE, MARKS, assert_as_exact, drawn, outcome, poisoned, widened

pytestmark = MARKS

SMALL = {"rows": 16, "ranks": 16, "features": 16, "splits": 2}


def test_a_gate_of_zero_has_its_gradient():
    tensors, _ = drawn((18, 16, 12, 3, 4), torch.float32, None)
    tensors[4] = torch.zeros_like(tensors[4]).requires_grad_()
    found = outcome(tensors, "triton")
    truth = outcome(widened(tensors), "reference")
    assert_as_exact(found, outcome(tensors, "stacked"), truth)
    assert found[5].abs().min() > 0


def test_an_expert_named_twice_gives_both_slots_its_gradient():
    tensors, _ = drawn((18, 16, 12, 4, 4), torch.float32, 3)
    index = torch.tensor([[1, 1, 2]] * 18, device=DEVICE)
    found = outcome(tensors, "triton", index=index)
    truth = outcome(widened(tensors), "reference", index=index)
    assert_as_exact(found, outcome(tensors, "stacked", index=index), truth)
    assert torch.equal(found[5][:, 0], found[5][:, 1])


@pytest.mark.parametrize("expert, experts, columns", [(0, 4, 512), (3, 4, 512), (0, 9, 0), (8, 9, 0)])
def test_all_tokens_on_one_expert(expert, experts, columns, monkeypatch):
    monkeypatch.setattr(sizes, "GROUPED_COLUMNS", columns)
    tensors, _ = drawn((35, 16, 24, experts, 8), torch.float32, 1)
    index = torch.full((35, 1), expert, device=DEVICE)
    with forced(rows=16, features=16, splits=2), poisoned():
        found = outcome(tensors, "triton", index=index)
    truth = outcome(widened(tensors), "reference", index=index)
    assert_as_exact(found, outcome(tensors, "stacked", index=index), truth)
    others = [other for other in range(experts) if other != expert]
    assert not found[3][others].any() and not found[4][:, others].any()


@pytest.mark.parametrize("tiles", [{}, SMALL])
@pytest.mark.parametrize("trainable", [(False, False, True, True), (True, False, True, False), (False,) * 4])
def test_frozen_experts(tiles, trainable):
    tensors, _ = drawn((20, 24, 16, 4, 8), torch.float32, None)
    with forced(**tiles), poisoned():
        free = outcome(tensors, "triton")
        held = outcome(tensors, "triton", trainable=trainable)
    for place in (0, 1, 2, 5):
        assert torch.equal(free[place], held[place])
    for expert, trained in enumerate(trainable):
        for mine, other in ((held[3][expert], free[3][expert]), (held[4][:, expert], free[4][:, expert])):
            assert torch.equal(mine, other if trained else torch.zeros_like(other))


def test_frozen_experts_of_sorted_tokens(monkeypatch):
    monkeypatch.setattr(sizes, "GROUPED_COLUMNS", 0)
    tensors, options = drawn((20, 16, 20, 9, 8), torch.float32, 2)
    trainable = tuple(expert % 2 == 0 for expert in range(9))
    with poisoned():
        free = outcome(tensors, "triton", **options)
        held = outcome(tensors, "triton", trainable=trainable, **options)
    for place in (0, 1, 2, 5):
        assert torch.equal(free[place], held[place])
    assert torch.equal(held[3][::2], free[3][::2]) and not held[3][1::2].any() and free[3][1::2].any()
    assert torch.equal(held[4][:, ::2], free[4][:, ::2]) and not held[4][:, 1::2].any()


@pytest.mark.parametrize("wanted", [(1,), (2,), (3,), (4,), (0,), (1, 3)])
def test_only_what_is_wanted(wanted):
    tensors, options = drawn((18, 16, 12, 3, 4), torch.float32, 2)
    every = outcome(tensors, "triton", **options)
    for place, tensor in enumerate(tensors):
        tensor.requires_grad_(place in wanted)
    base, x, a, b, weight = tensors
    y = routed_lora(x, base, a, b, 1.5, weight=weight, impl="triton", **options)
    dy = torch.linspace(0.5, 1.5, y.numel(), dtype=torch.float64).to(y).view_as(y)
    found = torch.autograd.grad(y, [tensors[place] for place in wanted], dy)
    for place, gradient in zip(wanted, found, strict=True):
        assert torch.equal(gradient, every[place + 1])


def test_strided_input_and_expanded_gradients():
    tensors, _ = drawn((18, 16, 12, 3, 4), torch.float32, None)
    plain = outcome(tensors, "triton", dy=torch.full((18, 12), 2.0, device=DEVICE))
    base, x, a, b, gates = (tensor.detach() for tensor in tensors)
    strided = [
        torch.stack([base, base], dim=1)[:, 0],
        x.t().contiguous().t(),
        a.transpose(0, 2).contiguous().transpose(0, 2),
        torch.cat([b, b], dim=2)[:, :, :4],
        gates.t().contiguous().t(),
    ]
    strided = [tensor.requires_grad_() for tensor in strided]
    assert not any(tensor.is_contiguous() for tensor in strided)
    found = outcome(strided, "triton", dy=torch.tensor(2.0, device=DEVICE).expand(18, 12))
    for mine, other in zip(found, plain, strict=True):
        assert torch.equal(mine, other)
    found = outcome(strided, "triton", dy=torch.full((12, 18), 2.0, device=DEVICE).t())
    for mine, other in zip(found, plain, strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("k, experts, columns", [(None, 3, 512), (2, 3, 512), (2, 8, 0)])
def test_the_second_run_gives_the_same_bits(k, experts, columns, monkeypatch):
    monkeypatch.setattr(sizes, "GROUPED_COLUMNS", columns)
    tensors, options = drawn((20, 32, 24, experts, 4), torch.float32, k)
    with forced(rows=16, features=16, splits=2):
        first = outcome(tensors, "triton", **options)
        for mine, other in zip(outcome(tensors, "triton", **options), first, strict=True):
            assert torch.equal(mine, other)


def test_tokens_do_not_know_their_place():
    tensors, options = drawn((33, 16, 12, 4, 4), torch.float32, 2)
    order = torch.randperm(33, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    base, x, a, b, weight = tensors
    moved = [base[order], x[order], a, b, weight[order]]
    moved = [tensor.detach().requires_grad_() for tensor in moved]
    dy = torch.ones(33, 12, device=DEVICE)
    plain = outcome(tensors, "triton", dy, **options)
    found = outcome(moved, "triton", dy, index=options["index"][order])
    for place in (0, 1, 2, 5):
        assert torch.equal(found[place], plain[place][order])


def test_rows_beyond_two_gigabytes():
    """Three rows, 2**30 numbers apart: offsets do not fit 32 bits. The memory between is never touched."""
    (base, x, a, b, gates), _ = drawn((3, 16, 16, 2, 4), torch.float16, None)
    far = torch.empty(2 * 2**30 + 16, dtype=torch.float16, device=DEVICE).as_strided((3, 16), (2**30, 1))
    with torch.no_grad():
        far.copy_(x)
        near = routed_lora(x, base, a, b, 1.5, gates=gates, impl="triton")
        assert torch.equal(routed_lora(far, base, a, b, 1.5, gates=gates, impl="triton"), near)
