import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moe_adapt.evaluation.divergence import group_divergence, group_profiles, jensen_shannon


def test_value_by_hand():
    p, q = torch.tensor([0.5, 0.5]), torch.tensor([1.0, 0.0])
    mixed = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    assert float(jensen_shannon(p, q)) == pytest.approx(mixed - math.log(2) / 2)
    p, q = torch.tensor([0.9, 0.1]), torch.tensor([0.1, 0.9])
    entropy = -0.9 * math.log(0.9) - 0.1 * math.log(0.1)
    assert float(jensen_shannon(p, q, normalize=True)) == pytest.approx(math.log(2) / entropy - 1, rel=1e-5)


@given(st.integers(2, 16), st.integers(0, 99), st.floats(0.1, 20))
def test_zero_on_equal_symmetric_bounded(experts, seed, scale):
    logits = torch.randn(2, 7, experts, generator=torch.Generator().manual_seed(seed)) * scale
    p, q = logits.softmax(dim=-1)
    assert jensen_shannon(p, p).tolist() == [0] * 7
    assert jensen_shannon(p, p, normalize=True).tolist() == [0] * 7
    assert torch.equal(jensen_shannon(p, q), jensen_shannon(q, p))
    assert bool((jensen_shannon(p, q) <= math.log(2) + 1e-6).all())


def test_groups():
    values = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 8.0]])
    profiles = group_profiles(values, torch.tensor([0, 0, 1, -1]), num_groups=3)
    assert profiles.tolist() == [[0.5, 0.5], [1.0, 0.0], [0.0, 0.0]]
    matrix = group_divergence(profiles)
    assert matrix[0, 0] == 0
    assert torch.equal(matrix[0, 1], jensen_shannon(profiles[0], profiles[1]))
    assert bool(matrix[2].isnan().all())
    assert bool(matrix[:, 2].isnan().all())
