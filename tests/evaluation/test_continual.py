import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_adapt.errors import UserError
from moe_adapt.evaluation import continual as cl
from moe_adapt.evaluation.accuracy_matrix import AccuracyMatrix

WORKED = AccuracyMatrix([100, 20, 20], [[80, 2, -1], [90, 12, 3], [85, 14, 10]])


def test_worked_example():
    assert cl.accuracy_seen(WORKED) == pytest.approx([0.80, 0.85, 0.7785714286])
    found = cl.continual_metrics(WORKED, untrained=[0.05] * 3)
    error = np.sqrt(0.7785714286 * 0.2214285714 / 140)
    assert found == pytest.approx(
        {
            "average_incremental_accuracy": 0.8095238095,
            "final_accuracy": 0.7785714286,
            "final_accuracy_standard_error": error,
            "final_task_mean": 0.6833333333,
            "average_task_mean": 0.7444444444,
            "forgetting_max": 0.025,
            "forgetting_max_prev": -0.025,
            "forgetting_initial": -0.075,
            "backward_transfer": 0.075,
            "forward_transfer": 0.075,
            "plasticity": (0.8 + 0.6 + 0.5) / 3,
        }
    )


@st.composite
def matrices(draw) -> AccuracyMatrix:
    tasks = draw(st.integers(2, 6))
    total = np.array(draw(st.lists(st.integers(1, 30), min_size=tasks, max_size=tasks)))
    rates = np.array(draw(st.lists(st.floats(0, 1), min_size=tasks**2, max_size=tasks**2)))
    correct = (rates.reshape(tasks, tasks) * total).astype(int)
    return AccuracyMatrix(total, np.where(np.tri(tasks, dtype=bool), correct, -1))


@given(matrices())
def test_relations_between_metrics(matrix):
    assert cl.forgetting_max(matrix) >= max(0.0, cl.forgetting_max_prev(matrix))
    assert cl.forgetting_max_prev(matrix) >= cl.forgetting_initial(matrix) - 1e-12
    assert cl.forgetting_initial(matrix) == -cl.backward_transfer(matrix)
    assert 0 <= cl.average_incremental_accuracy(matrix) <= 1
    assert cl.final_accuracy(matrix) == pytest.approx(matrix.correct[-1].sum() / matrix.total.sum())


@given(matrices())
def test_a_constant_learner_forgets_nothing(matrix):
    last = matrix.correct[-1]
    constant = AccuracyMatrix(matrix.total, np.where(matrix.correct < 0, -1, last[None]))
    for name in ("max", "max_prev", "initial"):
        assert (cl.forgetting_by_task(constant, name) == 0).all()


@given(matrices(), st.randoms())
def test_equal_tasks_may_change_places_in_the_last_row(matrix, random):
    equal = AccuracyMatrix(np.full(len(matrix), 30), np.minimum(matrix.correct, 30))
    order = list(range(len(matrix)))
    random.shuffle(order)
    moved = AccuracyMatrix(equal.total, equal.correct)
    moved.correct[-1] = equal.correct[-1][order]
    assert cl.final_accuracy(moved) == pytest.approx(cl.final_accuracy(equal))
    assert cl.final_accuracy(equal) == pytest.approx(cl.final_task_mean(equal))


@given(matrices())
def test_counts_equal_a_log_of_single_answers(matrix):
    answers = [np.arange(n) < right for n, right in zip(matrix.total, matrix.correct[-1], strict=True)]
    assert cl.final_accuracy(matrix) == pytest.approx(np.concatenate(answers).mean())
    assert cl.final_task_mean(matrix) == pytest.approx(np.mean([each.mean() for each in answers]))


def test_some_steps_only_have_another_name():
    matrix = AccuracyMatrix([4, 4, 4], [[-1] * 3, [3, 2, -1], [2, 2, 4]])
    found = cl.continual_metrics(matrix)
    assert found["average_incremental_accuracy@2"] == pytest.approx((5 / 8 + 8 / 12) / 2)
    assert "average_incremental_accuracy" not in found
    assert np.isnan(found["forgetting_initial"])


def test_one_task_forgets_nothing_measurable():
    found = cl.continual_metrics(AccuracyMatrix([4], [[3]]))
    assert found["final_accuracy"] == found["plasticity"] == 0.75
    assert np.isnan(found["forgetting_max"])


def test_classes_count_the_same():
    assert cl.final_class_mean(np.array([9, 1, 0]), np.array([10, 2, 0])) == pytest.approx(0.7)


@pytest.mark.parametrize("correct", [[[3, 0]], [[5, 0], [0, 0]], [[-2, 0], [0, 0]]])
def test_impossible_counts(correct):
    with pytest.raises(UserError):
        AccuracyMatrix([4, 4], correct)
