"""Plans of experts over devices: nothing lost, the bound kept, even loads left alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_adapt.errors import UserError
from moe_adapt.experts.placement import load_bound, loads, plan

COUNTS = st.lists(st.integers(0, 5000), min_size=1, max_size=24)


@given(COUNTS, st.integers(1, 9), st.floats(1, 2), st.integers(1, 700), st.floats(1, 2))
def test_nothing_is_lost_and_the_bound_holds(counts, world, factor, chunk, skip):
    shares = plan(counts, world, factor, chunk, skip)
    for expert, count in enumerate(counts):
        assert sum(share.tokens for share in shares if share.expert == expert) == count
    assert all(share.tokens > 0 and 0 <= share.device < world for share in shares)
    assert len({(share.expert, share.device) for share in shares}) == len(shares)
    assert max(loads(shares, world)) <= load_bound(counts, world, factor, chunk, skip) + 1e-9


def test_even_loads_stay_at_home():
    shares = plan([100, 110, 90, 100], world=4)
    assert [(share.expert, share.device, share.tokens) for share in shares] == [
        (0, 0, 100),
        (1, 1, 110),
        (2, 2, 90),
        (3, 3, 100),
    ]


def test_one_expert_with_everything_is_spread():
    shares = plan([8000, 0, 0, 0], world=4, factor=1.0, chunk=100)
    assert loads(shares, 4) == [2000] * 4


def test_handed_over_parts_are_no_crumbs():
    counts = [5000, 10, 10, 10]
    for share in plan(counts, world=4, factor=1.0, chunk=600):
        if share.device != share.expert:
            assert share.tokens >= min(600, counts[share.expert] % 600 or 600)


@pytest.mark.parametrize("bad", [([-1], 1, 1.1, 1), ([1], 0, 1.1, 1), ([1], 1, 0.9, 1), ([1], 1, 1.1, 0)])
def test_bad_input(bad):
    with pytest.raises(UserError, match="a plan needs"):
        plan(*bad)
