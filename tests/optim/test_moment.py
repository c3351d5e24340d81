"""Second moments: exact whatever the split, sketched within the bound, saved and restored."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import distributed

from moe_adapt.errors import UserError
from moe_adapt.optim import FrequentDirections, InputMoment, Spectrum
from tests.optim.data import WIDTH, task_inputs


def moment_of(*tasks, splits=(), **options):
    moment = InputMoment(WIDTH, **options)
    for rows in tasks:
        for piece in torch.tensor_split(rows, splits):
            moment.observe(piece)
        moment.end_task()
    return moment


@settings(max_examples=20)
@given(st.lists(st.integers(0, 400), max_size=4).map(sorted), st.integers(0, 5))
def test_any_split_and_order_gives_the_same_moment(splits, seed):
    rows = task_inputs(0)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    whole, split = moment_of(rows), moment_of(rows[order], splits=splits)
    expected = rows.double().t() @ rows.double() / len(rows)
    torch.testing.assert_close(whole.matrix().double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(split.matrix(), whole.matrix(), rtol=1e-5, atol=1e-6)


def test_tasks_are_weighted_by_their_counts():
    first, second = task_inputs(0, rows=100), task_inputs(1, rows=300)
    moment = moment_of(first)
    moment.observe(second)
    parts = [rows.t() @ rows / len(rows) for rows in (first, second)]
    torch.testing.assert_close(moment.matrix("past"), parts[0])
    torch.testing.assert_close(moment.matrix("current"), parts[1])
    torch.testing.assert_close(moment.matrix("all"), (100 * parts[0] + 300 * parts[1]) / 400)
    assert moment.rows_seen("all") == 400
    assert moment.trace("all") == pytest.approx(float(moment.matrix("all").trace()), rel=1e-5)


def test_merging_is_adding():
    first, second = task_inputs(0), task_inputs(1)
    merged = moment_of(first)
    merged.merge(moment_of(second))
    torch.testing.assert_close(merged.matrix(), moment_of(torch.cat([first, second])).matrix())
    with pytest.raises(UserError, match="same layer"):
        merged.merge(InputMoment(WIDTH + 1))


@pytest.mark.parametrize("exact", [True, False])
def test_processes_are_summed_at_the_end_of_a_task(exact, monkeypatch):
    """Two processes, played one after the other, end with the moment of all rows."""
    whole = moment_of(task_inputs(0)).matrix()
    options = {} if exact else {"max_exact": 1, "sketch_rank": WIDTH}
    halves = task_inputs(0).chunk(2)
    others = [moment_of(**options) for _ in halves]
    for other, rows in zip(others, halves, strict=True):
        other.observe(rows)
    here, there = others
    sums = iter([there.count, there.energy, *([there.total] if exact else [])])

    def gather(pieces, own):
        pieces[:] = [own, there.sketch.content()]

    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(distributed, "all_reduce", lambda value: value.add_(next(sums)))
    monkeypatch.setattr(distributed, "all_gather_object", gather)
    here.end_task()
    torch.testing.assert_close(here.matrix(), whole, rtol=1e-4, atol=1e-5)
    assert here.rows_seen() == 400


def test_a_sketch_is_within_its_bound():
    rows = torch.randn(500, WIDTH, generator=torch.Generator().manual_seed(0)) * torch.linspace(3, 0.1, WIDTH)
    sketch = FrequentDirections(WIDTH, rank=10)
    for piece in rows.split(37):
        sketch.update(piece)
    missing = torch.linalg.eigvalsh((rows.t() @ rows - sketch.content().t() @ sketch.content()).double())
    assert missing.min() > -1e-2
    assert missing.max() <= rows.square().sum() / 10
    assert len(sketch.content()) <= 20


def test_a_sketch_with_room_is_exact_and_merges():
    first, second = task_inputs(0), task_inputs(1)
    options = {"max_exact": 1, "sketch_rank": WIDTH}
    sketched = moment_of(first, second, **options)
    merged = moment_of(first, **options)
    merged.merge(moment_of(second, **options))
    expected = moment_of(first, second)
    for found in (sketched, merged):
        torch.testing.assert_close(found.matrix(), expected.matrix(), rtol=1e-3, atol=1e-4)
        assert found.trace() == pytest.approx(expected.trace(), rel=1e-6)
    leading = sketched.spectrum().values[:8]
    torch.testing.assert_close(leading, expected.spectrum().values[:8], rtol=1e-3, atol=1e-4)
    assert InputMoment(8192, sketch_rank=64).nbytes < InputMoment(8192, max_exact=8192).nbytes / 20


@pytest.mark.parametrize("options", [{}, {"max_exact": 1, "sketch_rank": 8}])
def test_state_round_trip(options):
    moment = moment_of(task_inputs(0), **options)
    moment.observe(task_inputs(1))
    other = InputMoment(WIDTH, **options)
    other.load_state_dict(moment.state_dict())
    for period in ("past", "all"):
        assert torch.equal(other.matrix(period), moment.matrix(period))


def test_without_rows_there_is_no_spectrum():
    assert InputMoment(WIDTH).spectrum() is None
    assert InputMoment(WIDTH, max_exact=1).spectrum("all") is None


def test_rank_of_an_energy_share():
    spectrum = Spectrum.of(torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0])))
    assert [spectrum.rank(share) for share in (0.4, 0.41, 0.9, 1.0)] == [1, 2, 3, 4]
    assert spectrum.rank(0.9, "sigma_sq") == 3 and spectrum.rank(0.8, "sigma_sq") == 2
    with pytest.raises(UserError, match="share of energy"):
        spectrum.rank(0.0)
