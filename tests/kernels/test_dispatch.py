"""The dispatcher: names and environment override it, estimates decide, nothing depends on values."""

import json
import logging

import pytest
import torch

from moe_adapt.errors import UserError
from moe_adapt.kernels import dispatch
from moe_adapt.kernels.dispatch import KERNEL_VARIABLE, choose, explain
from moe_adapt.kernels.implementations import find
from moe_adapt.kernels.problem import Problem
from moe_adapt.kernels.tune import fit, grid, inputs, measure, refine, with_implementation

SMALL = Problem(512, 576, 1536, 8, 8, 2, torch.float32, "cpu", True)
MANY = SMALL._replace(experts=256)


@pytest.fixture
def costs(tmp_path, monkeypatch):
    """Return a function that puts constants in place of the packaged ones."""

    def write(**constants):
        (tmp_path / "cpu.json").write_text(json.dumps({"seconds_per": constants}))
        monkeypatch.setattr(dispatch, "COSTS", tmp_path)
        dispatch.load_costs.cache_clear()
        dispatch._cheapest.cache_clear()

    yield write
    monkeypatch.undo()
    dispatch.load_costs.cache_clear()
    dispatch._cheapest.cache_clear()


def test_few_experts_are_stacked_and_many_grouped():
    assert choose(SMALL) == "stacked"
    assert choose(MANY) == "grouped"


def test_without_an_index_there_is_nothing_to_group():
    assert choose(MANY._replace(slots=None)) == "stacked"


def test_one_expert_runs_the_reference_but_for_an_explicit_name(monkeypatch):
    one = SMALL._replace(experts=1, slots=1)
    monkeypatch.setenv(KERNEL_VARIABLE, "stacked")
    assert choose(one) == "reference"
    assert choose(one, "stacked") == "stacked"


def test_the_environment_names_a_kernel_and_an_argument_goes_before_it(monkeypatch):
    monkeypatch.setenv(KERNEL_VARIABLE, "reference")
    assert choose(SMALL) == "reference"
    assert choose(SMALL, "grouped") == "grouped"
    monkeypatch.setenv(KERNEL_VARIABLE, "groupd")
    with pytest.raises(UserError, match="Did you mean 'grouped'"):
        choose(SMALL)


def test_a_named_kernel_that_cannot_compute_the_problem_is_an_error():
    with pytest.raises(UserError, match="needs an index"):
        choose(SMALL._replace(slots=None), "grouped")


def test_the_least_estimate_decides(costs, caplog):
    costs(stacked={"float32": [0, 0, 1, 0, 0]}, grouped={"float32": [0, 0, 9, 0, 0]})
    assert choose(SMALL) == "stacked"
    costs(stacked={"float32": [0, 0, 9, 0, 0]}, grouped={"float32": [0, 0, 1, 0, 0]})
    with caplog.at_level(logging.DEBUG, logger=dispatch.__name__):
        assert choose(SMALL) == "grouped"
    assert "kernel grouped" in caplog.text


def test_without_constants_the_stacked_form_runs(costs):
    costs()
    assert choose(MANY) == "stacked"


def test_explain_tells_all():
    found = {candidate.name: candidate for candidate in explain(SMALL._replace(slots=None))}
    assert [name for name, candidate in found.items() if candidate.chosen] == ["stacked"]
    assert "index" in found["grouped"].refusal and found["grouped"].seconds is None
    assert found["stacked"].seconds > 0
    work = find("stacked").work(SMALL)
    seconds = dispatch.load_costs("cpu")["stacked"]["float32"]
    assert found["stacked"].seconds == pytest.approx(sum(a * s for a, s in zip(work, seconds, strict=True)))


def test_fit_finds_constants_and_keeps_them_non_negative():
    work = [(3e9, 1e6, 12.0), (1e9, 5e6, 4.0), (2e8, 1e4, 30.0), (7e9, 2e7, 1.0)]
    truth = (2e-11, 3e-9, 4e-6)
    rows = [(row, sum(a * b for a, b in zip(row, truth, strict=True))) for row in work]
    assert fit(rows) == pytest.approx(truth, rel=1e-3)
    assert min(fit([((1.0, 1.0), 1.0), ((1.0, 2.0), 0.5)])) == 0


def test_refined_constants_choose_what_is_faster():
    """One way is linear, the other is not; the closest line alone picks the wrong one in the middle."""
    sizes = [1.0, 2.0, 4.0, 8.0, 16.0]
    work = {"linear": [(1.0, n) for n in sizes], "root": [(1.0, n) for n in sizes]}
    seconds = {"linear": list(sizes), "root": [3 * n**0.5 for n in sizes]}
    start = {name: fit(list(zip(work[name], seconds[name], strict=True))) for name in work}

    def lost(constants):
        estimates = {n: [a * constants[n][0] + b * constants[n][1] for a, b in work[n]] for n in work}
        places = range(len(sizes))
        chosen = [min(work, key=lambda n, i=i: estimates[n][i]) for i in places]
        return sum(seconds[n][i] / min(seconds[m][i] for m in work) - 1 for i, n in enumerate(chosen))

    found = refine(work, seconds, start, steps=200)
    assert lost(found) <= lost(start) and lost(found) < 0.1
    assert all(constant >= 0 for constants in found.values() for constant in constants)


def test_small_segments_of_half_precision_are_stacked():
    """A product of four rows in bf16 costs as much as one of fifty: 64 of them lose to one large one."""
    few = Problem(128, 768, 768, 64, 8, 2, torch.bfloat16, "cpu", True)
    assert choose(few) == "stacked" and choose(few._replace(tokens=2048)) == "grouped"


def test_measuring_a_problem():
    problem = grid("cpu", [torch.float32])[0]
    operands = inputs(problem)
    assert ((operands["gates"] != 0).sum(dim=1) == problem.slots).all()
    timings = measure(problem, {name: with_implementation(name) for name in ("stacked", "grouped")}, rounds=1)
    assert all(0 < forward <= both for forward, both in timings.values())
