"""Slices: all of them are the whole LoRA, with its scale; ranks that do not divide are refused."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_adapt.errors import UserError
from moe_adapt.experts import ExpertBank, SlicesKind
from moe_adapt.routing import Logits, OnOffSelector, RouteContext
from moe_adapt.tuner.site import SiteSpec


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 5), st.integers(1, 4), st.booleans())
def test_all_slices_on_are_the_whole_lora(experts, own, use_rslora):
    rank, alpha = experts * own, 3.0
    size = SlicesKind().stored(experts, rank, alpha, use_rslora)
    scale = SiteSpec(experts, size.rank, size.alpha).scale(use_rslora)
    assert scale == pytest.approx(SiteSpec(1, rank, alpha).scale(use_rslora))
    a, b = torch.randn(rank, 6, dtype=torch.float64), torch.randn(5, rank, dtype=torch.float64)
    x, base = torch.randn(7, 6, dtype=torch.float64), torch.randn(7, 5, dtype=torch.float64)
    logits = torch.randn(7, experts)
    gates = OnOffSelector(k=experts)(Logits(logits, logits), RouteContext()).gates.double()
    slices = ExpertBank(a.view(experts, own, 6), b.view(5, experts, own), scale)
    torch.testing.assert_close(slices(x, gates, base), base + scale * x @ a.t() @ b.t())


def test_a_rank_that_the_slices_do_not_divide_is_refused():
    with pytest.raises(UserError, match="take r=12"):
        SlicesKind().stored(4, 10, 1.0, False)
