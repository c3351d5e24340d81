"""Pictures of a stream: what is drawn of matrices that are full, sparse or empty."""

import matplotlib.image
import numpy as np
import pytest

from moe_adapt.evaluation.accuracy_matrix import AccuracyMatrix
from moe_adapt.evaluation.plots.stream import draw_matrix


def matrix(tasks, tested):
    correct = np.full((tasks, tasks), -1)
    for step in tested:
        correct[step, : step + 1] = 3
    return AccuracyMatrix(total=[4] * tasks, correct=correct.tolist())


@pytest.mark.parametrize("tasks", [4, 40])
def test_only_tested_steps_have_a_row(tasks, tmp_path):
    heights = []
    for name, tested in (("full", range(tasks)), ("sparse", [1, tasks - 1]), ("none", [])):
        draw_matrix(matrix(tasks, tested), [f"task {i}" for i in range(tasks)], tmp_path / f"{name}.png")
        heights.append(matplotlib.image.imread(tmp_path / f"{name}.png").shape[0])
    assert heights[1] <= heights[0] == heights[2]
    assert tasks == 4 or heights[1] < heights[0]
