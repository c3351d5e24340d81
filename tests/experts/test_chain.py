"""Chains: against a loop over tokens and passes; one pass is a plain mixture beside a LoRA."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_adapt.errors import UserError
from moe_adapt.experts import ChainBank, ChainKind, ExpertBank
from moe_adapt.experts.chain import pass_gates
from tests.kernels.problems import gradients

WIDTH, OUT, RANK, TOKENS, EXPERTS = 6, 5, 3, 7, 4


def chain(passes, k=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = (
        (1, RANK, WIDTH),
        (OUT, 1, RANK),
        (EXPERTS, RANK, RANK),
        (passes - 1, EXPERTS, RANK),
        (TOKENS, WIDTH),
        (TOKENS, OUT),
    )
    a, b, core, rows, x, base = (torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)
    bank = ChainBank(a=a, b=b, scale=2.0, core=core, rows=rows if passes > 1 else None, k=k)
    return bank, x, base, torch.rand(TOKENS, EXPERTS, generator=generator, dtype=torch.float64)


def literal(bank, x, base, gates, passes):
    """Token by token, pass by pass, expert by expert."""
    outputs = []
    for token, row, weights in zip(x, base, gates, strict=True):
        hidden = bank.a[0] @ token
        for number in range(passes):
            if number:
                probs = (bank.rows[number - 1] @ hidden).softmax(0)
                best = sorted(range(EXPERTS), key=lambda e, p=probs: -p[e].item())[: bank.k]
                weights = [probs[e] if e in best else 0.0 for e in range(EXPERTS)]
            hidden = hidden + sum(gate * (bank.core[e] @ hidden) for e, gate in enumerate(weights))
        outputs.append(row + bank.scale * (bank.b[:, 0] @ hidden))
    return torch.stack(outputs)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 3), st.integers(1, EXPERTS), st.integers(0, 99))
def test_passes_and_their_gradients_equal_a_loop(passes, k, seed):
    bank, x, base, gates = chain(passes, k, seed)
    tensors = [t for t in (bank.a, bank.b, bank.core, bank.rows, x, base, gates) if t is not None]
    for tensor in tensors:
        tensor.requires_grad_()
    found, expected = bank(x, gates, base), literal(bank, x, base, gates, passes)
    torch.testing.assert_close(found, expected)
    for ours, theirs in zip(gradients(found, tensors), gradients(expected, tensors), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_one_pass_is_a_plain_mixture_beside_the_shared_lora():
    bank, x, base, gates = chain(1)
    down = bank.a.expand(EXPERTS, -1, -1)
    up = torch.stack([bank.b[:, 0] @ core for core in bank.core], dim=1)
    shared = ExpertBank(bank.a, bank.b, bank.scale)(x, torch.ones(TOKENS, 1, dtype=x.dtype), base)
    torch.testing.assert_close(bank(x, gates, base), ExpertBank(down, up, bank.scale)(x, gates, shared))


def test_experts_do_not_depend_on_the_number_of_passes():
    sizes = [ChainKind(passes).expert_tensors(EXPERTS, RANK)["core"].shape for passes in (1, 2, 5)]
    assert sizes == [(EXPERTS, RANK, RANK)] * 3
    assert ChainKind(1).router_tensors(EXPERTS, RANK) == {}
    assert ChainKind(5).router_tensors(EXPERTS, RANK)["rows"].shape == (4, EXPERTS, RANK)


def test_a_fresh_chain_is_its_lora():
    bank, x, base, gates = chain(3)
    fresh = ChainBank(a=bank.a, b=bank.b, scale=2.0, core=torch.zeros_like(bank.core), rows=bank.rows)
    lora = ExpertBank(bank.a, bank.b, 2.0)(x, torch.ones(TOKENS, 1, dtype=x.dtype), base)
    torch.testing.assert_close(fresh(x, gates, base), lora)


def test_gates_of_a_pass_are_single_precision_under_autocast():
    hidden, rows = torch.randn(5, RANK), torch.randn(EXPERTS, RANK)
    with torch.autocast("cpu", torch.bfloat16):
        found = pass_gates(hidden.bfloat16(), rows, 2)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, pass_gates(hidden.bfloat16().float(), rows, 2))


@pytest.mark.parametrize("options", [{"passes": 0}, {"k": 0}])
def test_numbers_below_one_are_refused(options):
    with pytest.raises(UserError, match="at least 1"):
        ChainKind(**options)
