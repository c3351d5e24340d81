"""Edits of a pool as data, and on the factors of a bank."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_adapt.errors import UserError
from moe_adapt.experts import ExpertBank, PoolEdit, concatenate, edit_factors, inner_product, truncate


def factors(experts=3, rank=2, width=6, out=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    return draw(experts, rank, width), draw(out, experts, rank)


def delta(a, b, expert):
    return b[:, expert] @ a[expert]


@given(before=st.integers(1, 6), data=st.data())
@settings(max_examples=40)
def test_a_dense_mixture_survives_any_duplication_and_union(before, data):
    chosen = data.draw(st.lists(st.integers(0, before - 1), max_size=4))
    logits = torch.randn(4, before, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    outputs = torch.randn(before, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    edit = PoolEdit.duplicate(before, chosen)
    fresh = torch.zeros(4, edit.after, dtype=torch.float64)
    copied = edit.rows(logits, 1, fresh) + torch.tensor(edit.logit_correction())
    expected = logits.softmax(-1) @ outputs
    mixed = copied.softmax(-1) @ edit.rows(outputs, 0, torch.zeros(edit.after, 3, dtype=torch.float64))
    torch.testing.assert_close(mixed, expected)
    groups = [[old] + [before + i for i, c in enumerate(chosen) if c == old] for old in range(before)]
    back = PoolEdit.merge(edit.after, groups)
    again = back.rows(copied, 1, torch.zeros(4, before, dtype=torch.float64))
    again = again + torch.tensor(back.logit_correction())
    torch.testing.assert_close(again.softmax(-1), logits.softmax(-1))


def test_what_an_edit_says_about_itself():
    edit = PoolEdit.merge(4, [[1, 3]], [[0.25, 0.75]])
    assert edit.after == 3
    assert edit.sources == (((0, 1.0),), ((1, 0.25), (3, 0.75)), ((2, 1.0),))
    assert edit.merged == [1]
    assert edit.logit_correction() == [0.0, math.log(2), 0.0]
    assert PoolEdit.add(2, 2).fresh == [2, 3]
    assert PoolEdit.duplicate(2, [0, 0]).copies == [2, 3]
    assert PoolEdit.prune(3, [1]).sources == (((0, 1.0),), ((2, 1.0),))


@pytest.mark.parametrize("groups", [[[0, 1], [1, 2]], [[]]])
def test_overlapping_or_empty_groups_are_refused(groups):
    with pytest.raises(UserError, match="disjoint"):
        PoolEdit.merge(3, groups)


def test_the_last_expert_cannot_be_pruned():
    with pytest.raises(UserError, match="keep at least one"):
        PoolEdit.prune(2, [0, 1])


def test_copies_keep_their_bits_and_new_experts_do_nothing():
    a, b = factors()
    fresh = torch.randn(1, 2, 6, dtype=torch.float64)
    result = edit_factors(PoolEdit.add(3, 1), a, b, fresh)
    assert torch.equal(result.a[:3], a)
    assert torch.equal(result.b[:, :3], b)
    assert torch.equal(result.a[3], fresh[0])
    assert not result.b[:, 3].any()


def test_concatenation_is_exact_and_raises_the_rank_for_all():
    a, b = factors()
    edit = PoolEdit.merge(3, [[0, 2]], [[0.3, 0.7]])
    result = edit_factors(edit, a, b, a[:0], method="concat")
    assert result.a.shape == (2, 4, 6)
    torch.testing.assert_close(delta(result.a, result.b, 0), 0.3 * delta(a, b, 0) + 0.7 * delta(a, b, 2))
    torch.testing.assert_close(delta(result.a, result.b, 1), delta(a, b, 1))
    assert result.errors == {0: 0.0}


def test_svd_reaches_the_eckart_young_bound_and_balances():
    a, b = factors(experts=3, rank=3)
    edit = PoolEdit.merge(3, [[0, 1, 2]])
    result = edit_factors(edit, a, b, a[:0], method="svd")
    mean = sum(delta(a, b, e) for e in range(3)) / 3
    singular = torch.linalg.svdvals(mean)
    bound = float(singular[3:].square().sum().sqrt() / singular.square().sum().sqrt())
    assert result.errors[0] == pytest.approx(bound, rel=1e-9)
    assert float((delta(result.a, result.b, 0) - mean).norm() / mean.norm()) == pytest.approx(bound, rel=1e-9)
    up, down = result.b[:, 0], result.a[0]
    torch.testing.assert_close(up.t() @ up, down @ down.t())


def test_one_expert_in_two_gauges_merges_to_itself():
    a, b = factors(experts=1, rank=3)
    gauge = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    a2 = torch.cat([a, (torch.linalg.inv(gauge) @ a[0])[None]])
    b2 = torch.cat([b, (b[:, 0] @ gauge)[:, None]], dim=1)
    result = edit_factors(PoolEdit.merge(2, [[0, 1]]), a2, b2, a[:0])
    torch.testing.assert_close(delta(result.a, result.b, 0), delta(a, b, 0), rtol=1e-8, atol=1e-8)
    canonical = truncate(a[0], b[:, 0], 3)
    again = truncate(a2[1], b2[:, 1], 3)
    torch.testing.assert_close(canonical[0], again[0])
    torch.testing.assert_close(canonical[1], again[1])


def test_inner_product_needs_no_full_matrix():
    a, b = factors(experts=2)
    value = inner_product(a[0], b[:, 0], a[1], b[:, 1])
    torch.testing.assert_close(value, (delta(a, b, 0) * delta(a, b, 1)).sum())


def test_truncation_beyond_the_rank_and_of_nothing():
    a, b = factors(experts=1, rank=2, width=3, out=1)
    down, up, error = truncate(a[0], b[:, 0], 5)
    assert down.shape == (5, 3) and error == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(up @ down, delta(a, b, 0))
    assert truncate(a[0] * 0, b[:, 0], 2)[2] == 0.0


def test_concatenated_weights_may_be_negative():
    a, b = factors(experts=2)
    down, up = concatenate(a, b, [-1.0, 2.0])
    torch.testing.assert_close(up @ down, 2 * delta(a, b, 1) - delta(a, b, 0))
    bank = ExpertBank(a, b, scale=1.0)
    torch.testing.assert_close(bank.delta_weight(1), delta(a, b, 1))


def test_rows_of_merged_experts_are_weighted_means_whatever_the_weights_sum_to():
    edit = PoolEdit.merge(3, [[0, 2]], [[2.0, 1.0]])
    rows = torch.tensor([[3.0, 0.0], [5.0, 5.0], [0.0, 9.0]])
    assert edit.rows(rows, 0, torch.zeros(2, 2)).tolist() == [[2.0, 3.0], [5.0, 5.0]]
    assert edit.rows(rows.t(), 1, torch.zeros(2, 2)).tolist() == [[2.0, 5.0], [3.0, 5.0]]
    names = edit.rows(torch.tensor([7, 8, 9]), 0, torch.zeros(2, dtype=torch.int64))
    assert names.tolist() == [7, 8], "names of groups are not averaged"


def test_rows_of_a_router_follow_the_experts():
    """Averaged where every member has one row; kept where they are to be, or where one has several."""
    pair = PoolEdit.merge(3, [[0, 2]], [[0.25, 0.75]])
    averaged, owners = pair.on_rows([0, 1, 2], keep=False)
    assert (averaged.sources, owners) == ((((0, 0.25), (2, 0.75)), ((1, 1.0),)), [0, 1])
    kept, owners = pair.on_rows([0, 1, 2], keep=True)
    assert (kept.sources, owners) == ((((0, 1.0),), ((1, 1.0),), ((2, 1.0),)), [0, 1, 0])
    several, owners = pair.on_rows([0, 1, 2, 0], keep=False)
    assert (several.sources, owners) == ((((0, 1.0),), ((1, 1.0),), ((2, 1.0),), ((3, 1.0),)), [0, 1, 0, 0])
    grown, owners = PoolEdit.add(2, 1).on_rows([0, 1], keep=False)
    assert (grown.sources, owners) == ((((0, 1.0),), ((1, 1.0),), ()), [0, 1, 2])
    copied, owners = PoolEdit.duplicate(2, [0]).on_rows([0, 1, 0], keep=False)
    assert copied.sources == (((0, 1.0),), ((1, 1.0),), ((2, 1.0),), ((0, 1.0),), ((2, 1.0),))
    assert owners == [0, 1, 0, 2, 2]
    pruned, owners = PoolEdit.prune(3, [0]).on_rows([0, 1, 2], keep=False)
    assert (pruned.sources, owners) == ((((1, 1.0),), ((2, 1.0),)), [0, 1])


def test_null_columns_stay_behind_the_experts():
    edit = PoolEdit.prune(3, [1]).with_nulls(2)
    assert edit.before == 5
    assert edit.sources == (((0, 1.0),), ((2, 1.0),), ((3, 1.0),), ((4, 1.0),))


def test_the_error_of_a_truncation_does_not_depend_on_the_size_of_the_factors():
    a, b = factors(experts=1, rank=3)
    errors = [truncate(scale * a[0], b[:, 0], 1)[2] for scale in (1.0, 1e-3)]
    assert errors[0] == pytest.approx(errors[1]) and errors[0] > 0.1
