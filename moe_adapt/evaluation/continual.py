r"""Continual-learning metrics: pure functions of an accuracy matrix.

With `R[i, j]` the accuracy on task j after training task i and `n_j` the test samples of task j:

* ``accuracy_seen`` A_b: sum_{j<=b} n_j R[b,j] / sum_{j<=b} n_j, over all test samples seen
* ``average_incremental_accuracy``: mean_b A_b (PILOT's and CaRE's A-bar; never rounded before averaging)
* ``final_accuracy``: A_{T-1}, sample-weighted
* ``final_task_mean``: mean_j R[T-1,j] (GEM's ACC, RanPAC, MCIT's "Last")
* ``average_task_mean``: mean_b mean_{j<=b} R[b,j] (MCIT's "Avg")
* ``forgetting_max``: mean_{j<T-1} [max_{i<=T-1} R[i,j] - R[T-1,j]] (PILOT, Mammoth); never negative
* ``forgetting_max_prev``: the same with max_{j<=i<T-1} (Chaudhry et al.); may be negative
* ``forgetting_initial``: mean_{j<T-1} [R[j,j] - R[T-1,j]] (Avalanche's "forgetting")
* ``backward_transfer``: its negative (GEM; divided by T-1)
* ``forward_transfer``: mean_{j>=1} [R[j-1,j] - b_j], b the untrained model's accuracy
* ``plasticity``: mean_j R[j,j]: to be read beside forgetting

What was not measured is nan. A mean over some of the steps only is named ``average_incremental_accuracy@k``,
k being their number, because it does not compare with the mean over all.

Reference: GEM, 1706.08840; Chaudhry et al., 1801.10112; PILOT, 2309.07117; Avalanche, 2104.00405.
"""

import warnings
from collections.abc import Sequence

import numpy as np

from moe_adapt.evaluation.accuracy_matrix import AccuracyMatrix

__all__ = [
    "accuracy_seen",
    "average_incremental_accuracy",
    "average_task_mean",
    "backward_transfer",
    "continual_metrics",
    "final_accuracy",
    "final_class_mean",
    "final_task_mean",
    "forgetting_by_task",
    "forgetting_initial",
    "forgetting_max",
    "forgetting_max_prev",
    "forward_transfer",
    "plasticity",
    "standard_error",
]


def accuracy_seen(matrix: AccuracyMatrix) -> np.ndarray:
    """Return A_b, accuracy over all test samples of the tasks up to b, [T]; nan where not measured.

    >>> accuracy_seen(AccuracyMatrix([10, 5], [[9, -1], [6, 3]])).tolist()
    [0.9, 0.6]
    """
    found = np.full(len(matrix), np.nan)
    for step in matrix.measured():
        found[step] = matrix.correct[step, : step + 1].sum() / matrix.total[: step + 1].sum()
    return found


def average_incremental_accuracy(matrix: AccuracyMatrix) -> float:
    """Return the mean of A_b over the measured steps."""
    return _mean(accuracy_seen(matrix)[matrix.measured()])


def final_accuracy(matrix: AccuracyMatrix) -> float:
    """Return A_{T-1}: accuracy over all test samples after the last task."""
    return float(accuracy_seen(matrix)[-1])


def final_task_mean(matrix: AccuracyMatrix) -> float:
    """Return the mean of the last row of R: every task counts the same."""
    return float(matrix.rates()[-1].mean())


def average_task_mean(matrix: AccuracyMatrix) -> float:
    """Return the mean over measured steps of the mean accuracy on the tasks seen."""
    rates = matrix.rates()
    return _mean(np.array([rates[step, : step + 1].mean() for step in matrix.measured()]))


def final_class_mean(correct: np.ndarray, total: np.ndarray) -> float:
    """Return the mean accuracy of classes, from right answers [C] and test samples [C] of each class."""
    present = np.asarray(total) > 0
    return _mean(np.asarray(correct)[present] / np.asarray(total)[present])


def forgetting_by_task(matrix: AccuracyMatrix, best: str = "max") -> np.ndarray:
    """Return how far the last accuracy on each earlier task lies below an earlier one, [T - 1].

    Args:
        matrix: The accuracies.
        best: What it is compared with: ``max`` (best of all rows), ``max_prev`` (best of the rows from the
            task's own to the last but one) or ``initial`` (right after the task).
    """
    rates = matrix.rates()
    last = len(matrix) - 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a column without any measurement is nan
        tops = {
            "max": lambda j: np.nanmax(rates[:, j]),
            "max_prev": lambda j: np.nanmax(rates[j:last, j]),
            "initial": lambda j: rates[j, j],
        }
        return np.array([tops[best](j) - rates[last, j] for j in range(last)])


def forgetting_max(matrix: AccuracyMatrix) -> float:
    """Return the mean drop from the best accuracy of all steps, the last included."""
    return _mean(forgetting_by_task(matrix, "max"))


def forgetting_max_prev(matrix: AccuracyMatrix) -> float:
    """Return the mean drop from the best accuracy before the last step; negative if tasks improved."""
    return _mean(forgetting_by_task(matrix, "max_prev"))


def forgetting_initial(matrix: AccuracyMatrix) -> float:
    """Return the mean drop from the accuracy right after the task."""
    return _mean(forgetting_by_task(matrix, "initial"))


def backward_transfer(matrix: AccuracyMatrix) -> float:
    """Return the mean gain since right after the task, the negative of `forgetting_initial`."""
    return -forgetting_initial(matrix)


def forward_transfer(matrix: AccuracyMatrix, untrained: Sequence[float]) -> float:
    """Return the mean gain on tasks before they are learned.

    Args:
        matrix: The accuracies; those above the diagonal need scores for unseen classes.
        untrained: Accuracy of the untrained model on each task, [T].
    """
    return _mean(np.diag(matrix.rates(), k=1) - np.asarray(untrained)[1:])


def plasticity(matrix: AccuracyMatrix) -> float:
    """Return the mean accuracy right after each task."""
    return _mean(np.diag(matrix.rates()))


def standard_error(accuracy: float, samples: int) -> float:
    """Return the binomial standard error of an accuracy on so many samples.

    >>> round(standard_error(0.683, 19849), 4)
    0.0033
    """
    return float(np.sqrt(accuracy * (1 - accuracy) / samples))


def continual_metrics(matrix: AccuracyMatrix, untrained: Sequence[float] | None = None) -> dict[str, float]:
    """Return all metrics by name.

    Args:
        matrix: The accuracies.
        untrained: Accuracy of the untrained model on each task, for `forward_transfer`; left out if not
            given.
    """
    steps = len(matrix.measured())
    suffix = "" if steps == len(matrix) else f"@{steps}"
    found = {
        f"average_incremental_accuracy{suffix}": average_incremental_accuracy(matrix),
        "final_accuracy": final_accuracy(matrix),
        "final_accuracy_standard_error": standard_error(final_accuracy(matrix), int(matrix.total.sum())),
        "final_task_mean": final_task_mean(matrix),
        f"average_task_mean{suffix}": average_task_mean(matrix),
        f"forgetting_max{suffix}": forgetting_max(matrix),
        f"forgetting_max_prev{suffix}": forgetting_max_prev(matrix),
        "forgetting_initial": forgetting_initial(matrix),
        "backward_transfer": backward_transfer(matrix),
        "plasticity": plasticity(matrix),
    }
    if untrained is not None:
        found["forward_transfer"] = forward_transfer(matrix, untrained)
    return found


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")
