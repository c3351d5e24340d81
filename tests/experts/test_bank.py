"""The two-product mixture against the literal per-expert loop."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_adapt.experts import ExpertBank, add_mixture
from moe_adapt.experts.reference import loop_mixture


def problem(tokens, width, out, experts, rank, dtype=torch.float64, seed=0, density=0.6):
    generator = torch.Generator().manual_seed(seed)
    base, x, a, b = (
        torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)
        for shape in ((tokens, out), (tokens, width), (experts, rank, width), (out, experts, rank))
    )
    gates = torch.rand(tokens, experts, generator=generator, dtype=torch.float64)
    gates = (gates * (torch.rand(tokens, experts, generator=generator) < density)).to(dtype)
    return [tensor.requires_grad_() for tensor in (base, x, a, b, gates)]


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.integers(0, 9),
    width=st.integers(1, 7),
    out=st.integers(1, 7),
    experts=st.integers(1, 6),
    rank=st.integers(1, 5),
    scale=st.floats(0.1, 4.0),
)
def test_equals_the_loop_with_all_gradients(tokens, width, out, experts, rank, scale):
    ours = problem(tokens, width, out, experts, rank)
    theirs = problem(tokens, width, out, experts, rank)
    y, z = add_mixture(*ours, scale), loop_mixture(*theirs, scale)
    torch.testing.assert_close(y, z, rtol=1e-10, atol=1e-10)
    weights = torch.linspace(0.5, 1.5, y.numel(), dtype=y.dtype).view_as(y)
    (y * weights).sum().backward()
    (z * weights).sum().backward()
    for ours_in, theirs_in in zip(ours[:4], theirs[:4], strict=True):
        torch.testing.assert_close(ours_in.grad, theirs_in.grad, rtol=1e-10, atol=1e-10)
    kept = theirs[4].detach() != 0
    torch.testing.assert_close(ours[4].grad[kept], theirs[4].grad[kept], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("experts", [1, 3])
def test_gradcheck(experts):
    assert torch.autograd.gradcheck(lambda *args: add_mixture(*args, 1.5), problem(4, 3, 5, experts, 2))


def test_a_token_without_experts_gets_the_base_output_bit_for_bit():
    base, x, a, b, _ = (tensor.detach() for tensor in problem(5, 4, 3, 6, 2, dtype=torch.float32))
    assert torch.equal(add_mixture(base, x, a, b, torch.zeros(5, 6), 2.0), base)


def test_half_precision_base_keeps_the_expert_precision():
    base, x, a, b, gates = (tensor.detach() for tensor in problem(5, 4, 3, 6, 2, dtype=torch.float32))
    result = add_mixture(base.bfloat16(), x, a, b, gates, 2.0)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, loop_mixture(base.bfloat16().float(), x, a, b, gates, 2.0))


def test_blocks_and_order_do_not_change_the_mixture():
    base, x, a, b, gates = (tensor.detach() for tensor in problem(5, 4, 3, 4, 2))
    plain = ExpertBank(a, b, scale=2.0)
    order = (2, 0, 1, 3)
    blocks = [(a[[2, 0]], b[:, [2, 0]]), (a[[1, 3]], b[:, [1, 3]])]
    split = ExpertBank.from_blocks(blocks, scale=2.0, order=order)
    torch.testing.assert_close(split(x, gates, base), plain(x, gates, base))
    for expert in range(4):
        torch.testing.assert_close(split.delta_weight(expert), plain.delta_weight(expert))


def test_delta_weight_is_what_one_expert_adds():
    base, x, a, b, _ = (tensor.detach() for tensor in problem(5, 4, 3, 4, 2))
    bank = ExpertBank(a, b, scale=1.7)
    gates = torch.zeros(5, 4, dtype=x.dtype)
    gates[:, 2] = 1
    torch.testing.assert_close(bank(x, gates, base), base + x @ bank.delta_weight(2).t())
