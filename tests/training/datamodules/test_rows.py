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


@pytest.mark.parametrize("strata", [[0], [0, 1, 2]])
def test_too_few_rows_to_hold_out(strata):
    with pytest.raises(UserError, match="training rows are too few to hold out one"):
        hold_out(Rows(strata, np.array(strata)), 0.1, seed=0)


@pytest.mark.parametrize("strata", [[0, 1, 1], [0] * 30 + [1] + [2] * 2, [0, 1, 2, 3, 4, 4]])
@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
def test_no_class_loses_its_last_row(strata, fraction):
    rest, held = hold_out(Rows(list(range(len(strata))), np.array(strata)), fraction, seed=1)
    assert set(rest.strata) == set(strata)
    assert sorted([*rest.items, *held.items]) == list(range(len(strata)))
