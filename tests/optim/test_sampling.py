"""Which rows enter a moment: all at first, an unbiased share later, the same after a restart."""

import pytest
import torch

from moe_adapt.errors import UserError
from moe_adapt.optim import InputMoment, RowSample
from moe_adapt.optim.sampling import LEAST, WHOLE
from tests.optim.data import WIDTH, task_inputs


def taken(sample, steps, size=64):
    """Numbers of the rows taken of a stream of `steps * size` rows, and what each counts."""
    numbers, weights = [], []
    for step in range(steps):
        positions, weight = sample.chosen(size)
        positions = torch.arange(size) if positions is None else positions
        numbers += (step * size + positions).tolist()
        weights += [weight] * len(positions)
    return numbers, weights


def test_the_first_rows_of_a_task_are_taken_whole_and_the_count_stays():
    sample, size = RowSample(WIDTH, 1 / 16), 64
    numbers, weights = taken(sample, 100, size)
    whole = WHOLE * WIDTH
    assert numbers[:whole] == list(range(whole)) and weights[:whole] == [1.0] * whole
    assert len(numbers) < whole + (100 * size - whole) / 8
    left = sample.pending
    assert sum(weights) == pytest.approx(100 * size - left) and left < LEAST * 16
    sample.begin_task()
    assert sample.chosen(size) == (None, 1.0)


def test_a_share_of_one_takes_everything():
    numbers, weights = taken(RowSample(WIDTH, 1.0), 30)
    assert numbers == list(range(30 * 64)) and set(weights) == {1.0}


def test_the_draw_follows_from_the_tokens_before_and_is_no_stride():
    first, second = taken(RowSample(WIDTH), 60), taken(RowSample(WIDTH), 60)
    assert first == second
    late = [number % 64 for number in first[0] if number >= WHOLE * WIDTH]
    assert len(set(late)) > 48, "every position of a sequence gets its turn"


def test_the_sampled_moment_estimates_the_whole_one_without_bias():
    """Over many tasks the mean of estimates approaches the moment of all rows, faster than any one."""
    estimates, exact = [], []
    for task in range(24):
        rows = task_inputs(task, rows=2048)
        sample, moment, whole = RowSample(WIDTH, 1 / 8), InputMoment(WIDTH), InputMoment(WIDTH)
        for piece in rows.split(256):
            positions, weight = sample.chosen(len(piece))
            whole.observe(piece)
            if positions is None or len(positions):
                moment.observe(piece if positions is None else piece[positions], weight)
        estimates.append(moment.matrix("current"))
        exact.append(whole.matrix("current"))
    errors = torch.stack(estimates) - torch.stack(exact)
    size = torch.stack(exact).norm(dim=(1, 2)).mean()
    assert errors.norm(dim=(1, 2)).mean() < 0.25 * size
    assert errors.mean(0).norm() < 0.4 * errors.norm(dim=(1, 2)).mean(), "single errors cancel"


def test_weights_are_repetitions():
    rows = task_inputs(0, rows=20)
    weighted, repeated = InputMoment(WIDTH), InputMoment(WIDTH)
    weights = torch.arange(20) % 3
    weighted.observe(rows, weights.float())
    repeated.observe(rows.repeat_interleave(weights, dim=0))
    torch.testing.assert_close(weighted.matrix("current"), repeated.matrix("current"))
    assert weighted.rows_seen("current") == int(weights.sum())
    assert weighted.trace("current") == pytest.approx(repeated.trace("current"), rel=1e-5)
    sketched = InputMoment(WIDTH, max_exact=1, sketch_rank=WIDTH)
    sketched.observe(rows, 3.0)
    torch.testing.assert_close(3 * 20 * sketched.matrix("current"), 3 * rows.t() @ rows, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("share", [0.0, 1.5])
def test_impossible_shares(share):
    with pytest.raises(UserError, match="share of tokens"):
        RowSample(WIDTH, share)
