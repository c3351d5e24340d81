"""Re-homing dropped experts: nothing lost of copies, keep-all as it was, never better than the best cut."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moe_adapt.errors import UserError
from moe_adapt.experts.rehoming import rehome
from tests.experts.test_grouping import factors


def changes(a, b):
    return torch.einsum("oer,erd->eod", b, a).double()


def test_keeping_all_changes_no_bit():
    a, b = factors()
    new = rehome(a, b, [0, 1, 2, 3], torch.ones(4))
    assert torch.equal(new.a, a) and torch.equal(new.b, b)
    assert new.errors == {} and new.lost == 0


def test_a_copy_in_another_gauge_goes_home_exactly():
    a, b = factors()
    turn = torch.tensor([[2.0, 1.0], [0.0, 0.5]])
    a[3], b[:, 3] = turn @ a[1], b[:, 1] @ torch.linalg.inv(turn)
    new = rehome(a, b, [0, 1, 2], torch.tensor([1.0, 3.0, 1.0, 2.0]), alike=0.9)
    torch.testing.assert_close(changes(new.a, new.b), changes(a, b)[:3], rtol=1e-4, atol=1e-5)
    assert new.sources == [[0], [1, 3], [2]] and new.lost == 0
    assert new.errors[1] < 1e-5
    assert torch.equal(new.a[0], a[0]) and torch.equal(new.b[:, 2], b[:, 2])


@given(st.integers(0, 30), st.floats(-1, 0.5))
def test_the_cut_is_the_best_of_its_rank(seed, alike):
    a, b = factors(experts=5, seed=seed)
    use = torch.rand(5, generator=torch.Generator().manual_seed(seed)) + 0.1
    narrow = rehome(a, b, [0, 2], use, alike)
    wide_a, wide_b = torch.zeros(5, 12, 6), torch.zeros(5, 5, 12)  # room for every segment: no cut
    wide_a[:, :2], wide_b[:, :, :2] = a, b
    exact = changes(*rehome(wide_a, wide_b, [0, 2], use, alike)[:2])
    for place, expert in enumerate([0, 2]):
        if expert not in narrow.errors:
            continue
        target, found = exact[place], changes(narrow.a, narrow.b)[place]
        tail = torch.linalg.svdvals(target)[2:].square().sum().sqrt()
        error = torch.linalg.norm(found - target)
        assert error >= tail - 1e-5 and error <= tail + 1e-4
        assert narrow.errors[expert] == pytest.approx(float(tail / torch.linalg.norm(target)), abs=1e-5)


def test_what_is_like_nothing_is_lost_and_counted():
    a, b = torch.zeros(2, 1, 4), torch.zeros(3, 2, 1)
    a[0, 0, 0] = a[1, 0, 1] = b[0, 0, 0] = b[1, 1, 0] = 1.0
    new = rehome(a, b, [0], torch.ones(2))
    assert new.lost == 1 and torch.equal(new.a[0], a[0])


def test_a_segment_that_changes_nothing_needs_no_home():
    a, b = factors()
    b[:, 3] = 0
    new = rehome(a, b, [0, 1, 2], torch.ones(4), alike=-1.0)
    assert torch.equal(new.a, a[:3]) and new.lost == 0


def test_unused_experts_share_evenly():
    a, b = factors(experts=2)
    a[1], b[:, 1] = a[0], b[:, 0] * 3
    new = rehome(a, b, [0], torch.zeros(2))
    torch.testing.assert_close(changes(new.a, new.b)[0], 2 * changes(a, b)[0], rtol=1e-4, atol=1e-5)


def test_bad_input_is_one_sentence():
    a, b = factors()
    with pytest.raises(UserError, match="some must stay"):
        rehome(a, b, [], torch.ones(4))
    with pytest.raises(UserError, match="some must stay"):
        rehome(a, b, [4], torch.ones(4))
    with pytest.raises(UserError, match="cosine"):
        rehome(a, b, [0], torch.ones(4), alike=1.5)
