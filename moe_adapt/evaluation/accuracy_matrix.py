"""The accuracy matrix: right answers on every task after every task, as counts.

``correct[i, j]`` of ``total[j]`` test samples of task j were answered right after training task i. Counts
keep sample-weighted and task-mean metrics exact; `moe_adapt.evaluation.continual` computes them. A cell that
was not measured is -1.
"""

from typing import Any

import numpy as np

from moe_adapt.errors import UserError

__all__ = ["AccuracyMatrix"]


class AccuracyMatrix:
    """Right answers after every task, on every task.

    Args:
        total: Test samples of each task, [T].
        correct: Right answers, int64 [T, T], rows are training steps; -1 where nothing was measured. None
            for a matrix without measurements.

    Raises:
        UserError: If a count is impossible.

    >>> matrix = AccuracyMatrix([10, 5])
    >>> matrix.record(0, [9])
    >>> matrix.rates()[0].tolist()
    [0.9, nan]
    """

    def __init__(self, total: Any, correct: Any = None) -> None:
        self.total = np.asarray(total, dtype=np.int64)
        tasks = len(self.total)
        empty = np.full((tasks, tasks), -1, dtype=np.int64)
        self.correct = empty if correct is None else np.array(correct, dtype=np.int64)
        if self.correct.shape != (tasks, tasks):
            raise UserError(
                f"correct must be [{tasks}, {tasks}], as many as tasks, got {self.correct.shape}."
            )
        if (self.total < 1).any() or (self.correct > self.total).any() or (self.correct < -1).any():
            raise UserError("a task has at least one test sample, and at most that many right answers.")

    def __len__(self) -> int:
        return len(self.total)

    def record(self, step: int, correct: Any) -> None:
        """Enter the counts of a row, for tasks 0, 1, ... as far as given."""
        self.correct[step, : len(correct)] = correct

    def measured(self) -> np.ndarray:
        """Return the steps at which everything seen was measured, ascending."""
        seen = [step for step in range(len(self)) if (self.correct[step, : step + 1] >= 0).all()]
        return np.array(seen, dtype=np.int64)

    def rates(self) -> np.ndarray:
        """Return accuracies R [T, T], nan where nothing was measured."""
        return np.where(self.correct >= 0, self.correct / self.total, np.nan)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        return {"total": self.total.tolist(), "correct": self.correct.tolist()}
