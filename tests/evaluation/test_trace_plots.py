import sys

import pytest

from moe_adapt.errors import UserError
from moe_adapt.evaluation import plots
from moe_adapt.evaluation.trace.metrics import trace_metrics
from tests.evaluation.traces import trace


@pytest.mark.parametrize("name", ["draw_load", "draw_experts_per_token", "draw_groups"])
def test_pictures_of_metrics(tmp_path, name):
    getattr(plots, name)(trace_metrics(trace()), tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 5000


@pytest.mark.parametrize("experts", [5, 12, 30])
def test_picture_of_a_sample(tmp_path, experts):
    plots.draw_sample(trace(experts=experts), tmp_path / "picture.png", sample=1)
    assert (tmp_path / "picture.png").stat().st_size > 5000


def test_without_matplotlib_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r"moe-adapt\[plots\]"):
        plots.draw_sample(trace(), tmp_path / "picture.png")
