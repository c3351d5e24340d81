import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_adapt.errors import UserError
from moe_adapt.training.datamodules.sampler import ResumableLoader, SeededSampler, epoch_order


@given(st.integers(1, 60), st.integers(0, 5), st.integers(0, 5), st.booleans(), st.integers(1, 9))
def test_order_is_a_permutation_and_a_function_of_seed_and_epoch(rows, seed, epoch, grouped, batch_size):
    lengths = [(7 * i) % 13 for i in range(rows)] if grouped else None
    order = epoch_order(rows, seed, epoch, lengths, batch_size)
    assert sorted(order.tolist()) == list(range(rows))
    assert order.tolist() == epoch_order(rows, seed, epoch, lengths, batch_size).tolist()


def test_seeds_and_epochs_do_not_share_orders():
    orders = {tuple(epoch_order(50, seed, epoch)) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16


@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 4), st.integers(0, 6))
def test_ranks_cover_all_rows_in_equal_shares_and_skip_alike(rows, batch_size, ranks, first_batch):
    def parts(first):
        return [
            list(SeededSampler(range(rows), batch_size, 1, 2, first, None, ranks, rank))
            for rank in range(ranks)
        ]

    whole, rest = parts(0), parts(first_batch)
    assert {row for part in whole for row in part} == set(range(rows))
    assert len({len(part) for part in whole}) == 1
    assert rest == [part[first_batch * batch_size :] for part in whole]


def test_only_the_interrupted_epoch_is_cut():
    sampler = SeededSampler(range(10), batch_size=2, epoch=3, first_batch=2)
    assert len(list(sampler)) == 6 and len(sampler) == 10
    sampler.set_epoch(4)
    assert len(list(sampler)) == 10


def test_grouping_puts_similar_lengths_together():
    lengths = np.random.default_rng(0).integers(1, 100, 400)
    spread = {
        name: np.ptp(lengths[epoch_order(400, 0, 0, given, 8)].reshape(-1, 8), axis=1).mean()
        for name, given in {"plain": None, "grouped": lengths}.items()
    }
    assert spread["grouped"] < 0.1 * spread["plain"]


def test_loader_names_what_changed():
    def loader(rows):
        return ResumableLoader(range(rows), batch_size=2, sampler=SeededSampler(range(rows), 2))

    loader(8).load_state_dict(loader(8).state_dict())
    with pytest.raises(UserError, match="rows was 9, is 8"):
        loader(8).load_state_dict(loader(9).state_dict())
