import sys

import pytest

from moe_adapt.errors import UserError
from moe_adapt.evaluation.plots import draw_routing

REPORT = {
    "load": {"model.layers.0.q_proj": [0.5, 0.5], "model.layers.1.q_proj": [0.2, 0.3, 0.5]},
    "history": [{"step": 1, "entropy": 1.0, "k": 2.0}, {"step": 9, "entropy": 0.8, "k": 1.5}],
}


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_draws_sites_with_different_numbers_of_experts(tmp_path, suffix):
    draw_routing(REPORT, tmp_path / f"routing.{suffix}")
    assert (tmp_path / f"routing.{suffix}").stat().st_size > 5000


def test_without_matplotlib_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r"moe-adapt\[plots\]"):
        draw_routing(REPORT, tmp_path / "routing.png")
