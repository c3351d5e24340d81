import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moe_adapt.errors import UserError
from moe_adapt.evaluation.coupling import router_expert_coupling, row_similarity
from moe_adapt.evaluation.novelty import coverage_gap, expert_disagreement, routing_energy


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("kind", ["variance", "js"])
def test_identical_experts_agree(kind):
    one = torch.rand(5, 1, 4, generator=generator()).softmax(dim=-1)
    assert expert_disagreement(one.expand(5, 3, 4), kind).tolist() == pytest.approx([0] * 5, abs=1e-6)


def test_disagreement_by_hand():
    outputs = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    assert expert_disagreement(outputs, "js").item() == pytest.approx(math.log(2))
    assert expert_disagreement(outputs, "variance").item() == pytest.approx(0.25)
    with pytest.raises(UserError, match="variance or js"):
        expert_disagreement(outputs, "cosine")


@given(st.floats(0.1, 50), st.integers(0, 99))
def test_gap_does_not_depend_on_length(scale, seed):
    x, prototypes = (
        torch.randn(6, 5, generator=generator(seed)),
        torch.randn(3, 5, generator=generator(seed + 1)),
    )
    gap = coverage_gap(x, prototypes)
    assert torch.allclose(coverage_gap(x * scale, prototypes), gap, atol=1e-5)
    assert coverage_gap(prototypes * scale, prototypes).tolist() == pytest.approx([0] * 3, abs=1e-5)


def test_gap_tells_known_from_novel_clusters():
    centres = torch.eye(8)[:4] * 4
    known = centres[torch.arange(200) % 4] + 0.5 * torch.randn(200, 8, generator=generator(1))
    novel = torch.eye(8)[6] * 4 + 0.5 * torch.randn(200, 8, generator=generator(2))
    gaps = coverage_gap(novel, centres)[:, None] > coverage_gap(known, centres)[None]
    assert gaps.float().mean() > 0.9


def test_energy_is_high_without_an_answer():
    assert routing_energy(torch.tensor([[9.0, 0.0]])) < routing_energy(torch.tensor([[0.0, 0.0]]))


def test_coupling_falls_when_experts_are_exchanged():
    rows = torch.eye(4)
    down = torch.stack([rows, torch.zeros(4, 4)], dim=1)
    assert router_expert_coupling(rows, down) == 1
    assert router_expert_coupling(rows, down.roll(1, dims=0)) == 0
    assert row_similarity(rows) == 0
    assert row_similarity(torch.ones(3, 4)) == pytest.approx(1)
    assert math.isnan(row_similarity(torch.ones(1, 4)))
