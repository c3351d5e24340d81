"""Banks: blocks, order and freezing do not change the mixture that the kernels compute."""

import pytest
import torch

from moe_adapt.experts import ExpertBank
from tests.kernels.problems import gradients, problem

ORDER = (2, 0, 1, 3)


def split_bank(a, b, frozen=0):
    blocks = [(a[[2, 0]], b[:, [2, 0]]), (a[[1, 3]], b[:, [1, 3]])]
    return ExpertBank.from_blocks(blocks, scale=2.0, order=ORDER, frozen=frozen)


def test_blocks_and_order_do_not_change_the_mixture():
    base, x, a, b, gates = (tensor.detach() for tensor in problem(5, 4, 3, 4, 2))
    plain, split = ExpertBank(a, b, scale=2.0), split_bank(a, b)
    torch.testing.assert_close(split(x, gates, base), plain(x, gates, base))
    for expert in range(4):
        torch.testing.assert_close(split.delta_weight(expert), plain.delta_weight(expert))


def test_an_index_follows_the_order():
    base, x, a, b, _ = (tensor.detach() for tensor in problem(5, 4, 3, 4, 2))
    index = torch.tensor([[0, 1], [2, 3], [3, 0], [-1, 2], [-1, -1]])
    gates = torch.zeros(5, 5, dtype=x.dtype).scatter_(1, index % 5, 1.0)[:, :4]
    _, stored = split_bank(a, b)._stored(gates, index)
    names = torch.tensor([*ORDER, -1])
    assert torch.equal(names[stored], index)
    torch.testing.assert_close(split_bank(a, b)(x, gates, base, index), ExpertBank(a, b, 2.0)(x, gates, base))


@pytest.mark.parametrize("frozen", [0, 2])
def test_shrink_and_expand_are_the_mixture_with_the_routers_logits(frozen):
    base, x, a, b, gates = problem(6, 4, 3, 4, 2)
    rows = torch.randn(3, 4, dtype=x.dtype, requires_grad=True)
    bank = split_bank(a, b, frozen)
    hidden, logits = bank.shrink(x, rows)
    together = torch.cat([bank.expand(hidden, gates, base), logits], dim=1)
    apart = torch.cat([bank(x, gates, base), x @ rows.t()], dim=1)
    torch.testing.assert_close(together, apart)
    tensors = [base, x, a, b, gates, rows]
    for ours, theirs in zip(gradients(together, tensors), gradients(apart, tensors), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_frozen_experts_get_no_gradient():
    base, x, a, b, gates = problem(6, 4, 3, 4, 2, density=1)
    bank = split_bank(a, b, frozen=2)
    da, db = gradients(bank(x, gates, base), [a, b])
    assert (da[[2, 0]] == 0).all() and (db[:, [2, 0]] == 0).all()
    assert (da[[1, 3]] != 0).all() and (db[:, [1, 3]] != 0).all()


def test_delta_weight_is_what_one_expert_adds():
    base, x, a, b, _ = (tensor.detach() for tensor in problem(5, 4, 3, 4, 2))
    bank = ExpertBank(a, b, scale=1.7)
    gates = torch.zeros(5, 4, dtype=x.dtype)
    gates[:, 2] = 1
    torch.testing.assert_close(bank(x, gates, base), base + x @ bank.delta_weight(2).t())


@pytest.mark.parametrize("chosen", ["stacked", "reference"])
def test_the_stacked_form_is_taken_where_the_dispatcher_takes_it_and_experts_have_their_own_a(
    chosen, monkeypatch
):
    _, x, a, b, _ = (tensor.detach() for tensor in problem(5, 4, 3, 4, 2))
    asked = []
    monkeypatch.setattr("moe_adapt.experts.bank.choose", lambda found: asked.append(found) or chosen)
    assert ExpertBank(a, b, 1.0).stacks(x, 2) == (chosen == "stacked")
    assert (asked[0].tokens, asked[0].experts, asked[0].rank, asked[0].slots) == (5, 4, 2, 2)
    shared = ExpertBank(a[:1], b, 1.0)
    assert not shared.stacks(x, 2) and len(asked) == 1


def test_experts_that_share_one_a_have_it_in_their_change_of_weight():
    _, _, a, b, _ = (tensor.detach() for tensor in problem(5, 4, 3, 4, 2))
    bank = ExpertBank(a[:1], b, scale=2.0, order=ORDER)
    for expert in range(4):
        expected = 2.0 * b[:, ORDER.index(expert)] @ a[0]
        torch.testing.assert_close(bank.delta_weight(expert), expected)
