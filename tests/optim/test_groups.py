import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from moe_adapt.errors import UserError
from moe_adapt.optim.groups import check_coverage, learning_rate_factor, parameter_groups

SCHEDULES = ["constant", "cosine", "linear"]


@given(st.integers(1, 50), st.integers(0, 20), st.sampled_from(SCHEDULES))
def test_factor_is_a_fraction_that_peaks_after_the_warmup(total, warmup, schedule):
    warmup = min(warmup, total - 1)
    factors = [learning_rate_factor(step, total, warmup, schedule) for step in range(total + 1)]
    assert all(0 <= factor <= 1 for factor in factors)
    assert factors[warmup] == 1
    assert factors[:warmup] == sorted(factors[:warmup])
    assert factors[warmup:] == sorted(factors[warmup:], reverse=True)
    assert factors[-1] == (1 if schedule == "constant" else pytest.approx(0))


def test_empty_groups_are_left_out_and_only_the_head_decays():
    weight = nn.Parameter(torch.zeros(1))
    lr = {"router": 1.0, "experts": 2.0, "head": 3.0}
    groups = parameter_groups({"router": [], "experts": [weight], "head": [weight]}, lr, 0.1)
    assert [(g["name"], g["lr"], g["weight_decay"]) for g in groups] == [
        ("experts", 2.0, 0.0),
        ("head", 3.0, 0.1),
    ]


def test_uncovered_parameters_are_named():
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    check_coverage(torch.optim.SGD(module.parameters(), lr=0.1), module)
    with pytest.raises(UserError, match=r"does not hold 2 trainable parameters \(1\.weight, 1\.bias\)"):
        check_coverage(torch.optim.SGD(module[0].parameters(), lr=0.1), module)
    module[1].requires_grad_(False)
    check_coverage(torch.optim.SGD(module[0].parameters(), lr=0.1), module)


@pytest.mark.parametrize(("schedule", "middle"), [("cosine", 0.6), ("linear", 0.6), ("constant", 1.0)])
def test_a_schedule_may_end_above_zero(schedule, middle):
    factors = [learning_rate_factor(step, 10, 0, schedule, end=0.2) for step in (0, 5, 10)]
    last = 1.0 if schedule == "constant" else 0.2
    assert factors == pytest.approx([1.0, middle, last])
