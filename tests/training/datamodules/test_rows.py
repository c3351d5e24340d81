import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_adapt.errors import UserError
from moe_adapt.training.datamodules.rows import Rows, hold_out, stratified_rows


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(1, 60), st.integers(0, 3))
def test_stratified_choice_keeps_the_shares(labels, count, seed):
    labels = np.array(labels)
    chosen = stratified_rows(labels, count, seed)
    assert len(set(chosen.tolist())) == len(chosen) == min(count, len(labels))
    shares = np.bincount(labels) * min(count / len(labels), 1)
    taken = np.bincount(labels[chosen], minlength=len(shares))
    assert (np.abs(taken - shares) < 1).all()
    assert chosen.tolist() == stratified_rows(labels, count, seed).tolist()


def test_other_seeds_choose_other_rows():
    labels = np.zeros(50, dtype=int)
    assert stratified_rows(labels, 10, 0).tolist() != stratified_rows(labels, 10, 1).tolist()


def test_hold_out_parts_the_rows():
    rows = Rows([f"row {i}" for i in range(20)], np.arange(20) % 2, list(range(20)))
    rest, held = hold_out(rows, 0.2, seed=0)
    assert sorted([*rest.items, *held.items]) == sorted(rows.items)
    assert np.bincount(held.strata).tolist() == [2, 2]
    assert [held.items[i] == f"row {held.lengths[i]}" for i in range(4)] == [True] * 4


def test_too_few_rows_to_hold_out():
    with pytest.raises(UserError, match="1 training rows are too few to hold out 1"):
        hold_out(Rows([0], np.zeros(1, dtype=int)), 0.1, seed=0)
