"""FiLM experts: against the formula token by token, equal to LoRA where nothing is modulated, as LoRAs."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_adapt.errors import UserError
from moe_adapt.experts import ExpertBank, FilmBank, FilmKind
from tests.kernels.problems import gradients

WIDTH, OUT, RANK, TOKENS = 6, 5, 4, 7


def film(experts, shift=True, scale=2.0, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    shapes = (
        (1, RANK, WIDTH),
        (OUT, 1, RANK),
        (experts, RANK),
        (experts, RANK),
        (TOKENS, WIDTH),
        (TOKENS, OUT),
    )
    a, b, gamma, beta, x, base = (torch.randn(s, generator=generator, dtype=dtype) for s in shapes)
    bank = FilmBank(a=a, b=b, scale=scale, gamma=gamma, beta=beta if shift else None)
    return bank, x, base, torch.rand(TOKENS, experts, generator=generator, dtype=dtype)


def literal(bank, x, base, gates):
    """Every expert of every token by itself."""
    rows = []
    for token, row, weights in zip(x, base, gates, strict=True):
        for expert, gate in enumerate(weights):
            hidden = bank.gamma[expert] * (bank.a[0] @ token)
            if bank.beta is not None:
                hidden = hidden + bank.beta[expert]
            row = row + gate * bank.scale * (bank.b[:, 0] @ hidden)
        rows.append(row)
    return torch.stack(rows)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 6), st.booleans(), st.integers(0, 99))
def test_the_folded_sum_and_its_gradients_equal_the_formula(experts, shift, seed):
    bank, x, base, gates = film(experts, shift, seed=seed)
    tensors = [t for t in (bank.a, bank.b, bank.gamma, bank.beta, x, base, gates) if t is not None]
    for tensor in tensors:
        tensor.requires_grad_()
    found, expected = bank(x, gates, base), literal(bank, x, base, gates)
    torch.testing.assert_close(found, expected)
    for ours, theirs in zip(gradients(found, tensors), gradients(expected, tensors), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("experts", [1, 3])
def test_without_modulation_it_is_lora_bit_for_bit(experts):
    bank, x, base, _ = film(experts, scale=1.7, dtype=torch.float32)
    plain = FilmBank(
        a=bank.a, b=bank.b, scale=bank.scale, gamma=torch.ones(experts, RANK), beta=torch.zeros(experts, RANK)
    )
    gates = F.one_hot(torch.arange(TOKENS) % experts, experts).float()
    lora = base + F.linear(F.linear(x, bank.a[0]), bank.b[:, 0]) * bank.scale
    assert torch.equal(plain(x, gates, base), lora)


def test_a_token_without_experts_keeps_the_base_output():
    bank, x, base, gates = film(3)
    assert torch.equal(bank(x, torch.zeros_like(gates), base), base)


def test_the_first_product_is_shared_with_the_router():
    bank, x, base, gates = film(3)
    rows = torch.randn(3, WIDTH, dtype=x.dtype)
    hidden, logits = bank.shrink(x, rows)
    torch.testing.assert_close(logits, x @ rows.t())
    torch.testing.assert_close(bank.expand(hidden, gates, base), bank(x, gates, base))


def test_without_a_shift_experts_are_loras():
    bank, x, base, gates = film(3, shift=False)
    own = bank.own_factors()
    assert isinstance(own, ExpertBank) and own.has_own_factors and not bank.no_matrix
    torch.testing.assert_close(own(x, gates, base), bank(x, gates, base))
    with pytest.raises(UserError, match="add a constant"):
        film(3)[0].own_factors()


def test_an_expert_has_two_numbers_per_rank():
    tensors = FilmKind().expert_tensors(100, 16)
    assert sum(tensor.numel() for tensor in tensors.values()) == 3200
    assert set(FilmKind(shift=False).expert_tensors(3, 4)) == {"gamma"}
    single = FilmKind().expert_tensors(1, 4)
    assert torch.equal(single["gamma"], torch.ones(1, 4)) and not single["beta"].any()
    with pytest.raises(UserError, match="not negative"):
        FilmKind(spread=-1.0)
