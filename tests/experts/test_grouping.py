"""Groups of experts to merge: alike in any gauge, around the most used, at random."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moe_adapt.errors import UserError
from moe_adapt.experts.grouping import groups_around_most_used, random_groups, similarity


def factors(experts=4, rank=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(experts, rank, 6, generator=generator), torch.randn(
        5, experts, rank, generator=generator
    )


def test_similarity_is_that_of_the_changes_of_weight():
    a, b = factors()
    changes = torch.einsum("oer,erd->eod", b, a).flatten(1).double()
    expected = torch.nn.functional.cosine_similarity(changes[:, None], changes[None], dim=-1)
    torch.testing.assert_close(similarity(a, b), expected, rtol=1e-5, atol=1e-6)


def test_similarity_does_not_see_the_gauge():
    a, b = factors()
    turn = torch.tensor([[2.0, 1.0], [0.0, 0.5]])
    other_a, other_b = a.clone(), b.clone()
    other_a[1], other_b[:, 1] = turn @ a[1], b[:, 1] @ torch.linalg.inv(turn)
    torch.testing.assert_close(similarity(other_a, other_b), similarity(a, b), rtol=1e-4, atol=1e-5)


def test_an_expert_that_changes_nothing_is_like_none():
    a, b = factors()
    b[:, 2] = 0
    alike = similarity(a, b)
    assert not alike[2].any() and alike.isfinite().all()


@given(st.integers(1, 7), st.integers(0, 50), st.data())
def test_groups_are_a_partition_with_the_most_used_first(experts, seed, data):
    keep = data.draw(st.integers(1, experts))
    generator = torch.Generator().manual_seed(seed)
    alike, use = torch.rand(experts, experts, generator=generator), torch.rand(experts, generator=generator)
    for groups in (groups_around_most_used(alike, use, keep), random_groups(experts, keep, seed)):
        assert sorted(expert for group in groups for expert in group) == list(range(experts))
        assert len(groups) == keep
    heads = {group[0] for group in groups_around_most_used(alike, use, keep)}
    assert min(use[list(heads)]) >= max([use[e] for e in range(experts) if e not in heads], default=0)


@pytest.mark.parametrize("keep", [0, 5])
def test_no_more_than_there_are_can_stay(keep):
    with pytest.raises(UserError, match="of 4 experts 1 to 4 can stay"):
        groups_around_most_used(torch.eye(4), torch.ones(4), keep)
    with pytest.raises(UserError, match="of 4 experts 1 to 4 can stay"):
        random_groups(4, keep, 0)
