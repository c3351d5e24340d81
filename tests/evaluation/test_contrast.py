"""Contrast of loads and shift of samples: zero on equals, antisymmetric, by hand, and what is refused."""

import math

import pytest
import torch

from moe_adapt.errors import UserError
from moe_adapt.evaluation.perturbations import APPENDED, PERTURBATIONS, typos
from moe_adapt.evaluation.trace.contrast import expert_contrast, routing_shift
from moe_adapt.evaluation.trace.record import RoutingTrace, SiteTrace, TokenTable, pack_bits


def trace(gates, samples=None, site="layer"):
    """A trace of one site with these gates, [N, E]."""
    gates = torch.tensor(gates)
    own = torch.zeros(len(gates), dtype=torch.int32) if samples is None else torch.tensor(samples).int()
    selected = gates > 0
    return RoutingTrace(
        sites={
            site: SiteTrace(
                num_experts=gates.shape[1],
                table=0,
                packed=pack_bits(selected),
                weights=gates[selected].half(),
                first=gates.argmax(dim=1).to(torch.int16),
            )
        },
        tables=[TokenTable(own, torch.arange(len(gates), dtype=torch.int32))],
        samples=torch.arange(int(own.max()) + 1),
    )


ONE = trace([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
OTHER = trace([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0]])


def test_contrast_by_hand_zero_on_equals_and_antisymmetric():
    found = expert_contrast(ONE, OTHER, pseudo=1.0)["layer"]
    expected = [math.log(3 / 6) - math.log(1 / 5), math.log(2 / 6) - math.log(2 / 5)]
    expected.append(math.log(1 / 6) - math.log(2 / 5))
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    assert not expert_contrast(ONE, ONE)["layer"].any()
    torch.testing.assert_close(expert_contrast(OTHER, ONE)["layer"], -found)


def test_shift_is_zero_on_equals_and_log_two_on_disjoint_experts():
    clean = trace([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]], [0, 1, 1])
    assert routing_shift(clean, clean) == {"layer": 0.0}
    longer = trace([[0.0, 1.0], [0.0, 1.0], [0.5, 0.5], [0.0, 1.0]], [0, 0, 1, 1])
    assert routing_shift(clean, longer)["layer"] == pytest.approx(math.log(2) / 2)
    assert routing_shift(longer, clean) == pytest.approx(routing_shift(clean, longer))


def test_samples_without_an_expert_do_not_count():
    clean = trace([[1.0, 0.0], [0.0, 0.0]], [0, 1])
    assert routing_shift(clean, trace([[1.0, 0.0], [0.0, 1.0]], [0, 1])) == {"layer": 0.0}


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(UserError, match="no site in common"):
        expert_contrast(ONE, trace([[1.0, 0.0, 0.0]], site="another"))
    with pytest.raises(UserError, match="3 experts in one trace and 2"):
        expert_contrast(ONE, trace([[1.0, 0.0]]))
    with pytest.raises(UserError, match="pseudo-count"):
        expert_contrast(ONE, OTHER, pseudo=0.0)
    with pytest.raises(UserError, match="1 and 2 samples"):
        routing_shift(ONE, trace([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]], [0, 1]))


def test_perturbations_change_letters_and_nothing_else():
    text = "please move thirty dollars to my savings account now"
    changed = typos(text, seed=1)
    assert changed != text and changed == typos(text, seed=1) and changed != typos(text, seed=2)
    assert [sorted(word) for word in changed.split()] == [sorted(word) for word in text.split()]
    assert typos("a bit of it", seed=0) == "a bit of it"
    assert PERTURBATIONS["case"]("Card 5", 0) == "CARD 5"
    assert PERTURBATIONS["appended"](text, 0) == f"{text} {APPENDED}"
