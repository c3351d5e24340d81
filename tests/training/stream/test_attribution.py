"""Attribution: the shares add up, swaps change what they should, growing pools leak; also after a resume."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_adapt.training.stream import StreamRunner
from moe_adapt.training.stream.attribution import can_attribute, shapley_shares
from tests.learners.instructions.toys import learner, stream


@given(*[st.floats(0, 1)] * 4)
def test_shares_add_up_to_the_drop(then, routers_now, experts_now, now):
    routers, experts = shapley_shares(then, routers_now, experts_now, now)
    assert routers + experts == pytest.approx(then - now)


def test_shares_of_pure_cases():
    assert shapley_shares(0.9, 0.9, 0.4, 0.4) == pytest.approx((0.0, 0.5))
    assert shapley_shares(0.9, 0.4, 0.9, 0.4) == pytest.approx((0.5, 0.0))


def test_a_fixed_pool_is_attributed_and_left_as_it_was(tmp_path):
    built = learner("sequential_instructions", lr=2e-2)
    result = StreamRunner(tmp_path).run(built, stream(3))
    rates = result.matrix.rates()
    found = result.attribution
    assert not found["growing_pool"] and [row["task"] for row in found["tasks"]] == [0, 1]
    for row in found["tasks"]:
        drop = rates[row["task"], row["task"]] - rates[2, row["task"]]
        assert row["drop_by_routers"] + row["drop_by_experts"] == pytest.approx(drop)
        assert row["expert_drift"] > 0 and row["logit_change"] > 0 and row["leak"] == 0
    again = StreamRunner(tmp_path / "again").run(learner("sequential_instructions", lr=2e-2), stream(3))
    assert again.attribution == found
    assert (tmp_path / "result.json").read_text().count("drop_by_routers") > 0


def test_a_frozen_router_has_no_router_share():
    built = learner("sequential_instructions", lr=2e-2, tuner={"scorer": "frozen_linear"})
    found = StreamRunner().run(built, stream(2)).attribution
    assert found["mean"]["logit_change"] == 0
    assert found["mean"]["drop_by_routers"] == pytest.approx(0, abs=1e-6)


def test_a_growing_pool_leaks(tmp_path):
    found = StreamRunner(tmp_path).run(learner("dymoe"), stream(2)).attribution
    assert found["growing_pool"]
    assert found["mean"]["leak"] > 0 and "drop_by_routers" not in found["mean"]


def test_a_resumed_run_has_what_was_kept(tmp_path):
    expected = StreamRunner(tmp_path / "whole").run(learner("same"), stream(2)).attribution
    first = learner("same")
    end = first.end_task

    def stops(task, run):
        if task.index == 1:
            raise RuntimeError("power cut")
        end(task, run)

    first.end_task = stops
    with pytest.raises(RuntimeError, match="power cut"):
        StreamRunner(tmp_path / "cut").run(first, stream(2))
    resumed = StreamRunner(tmp_path / "cut").run(learner("same", seed=1), stream(2), resume=True)
    assert resumed.attribution["tasks"][0].keys() == expected["tasks"][0].keys()
    for key, value in expected["mean"].items():
        assert resumed.attribution["mean"][key] == pytest.approx(value, nan_ok=True)
    assert np.isfinite(list(expected["mean"].values())).all()


def test_what_can_be_attributed():
    assert not can_attribute(learner("frozen_instructions"))
    assert not can_attribute(learner("joint_instructions"))
    assert not can_attribute(learner("prototype_lora"))
    assert can_attribute(learner("dymoe"))
