"""Test, then train: run a model over a stream and keep what it predicted, and at what price.

Every row is predicted before its label is shown. With a label delay the label of a row reaches the learner
`delay` rows later, together with the features it belongs to; labels still on their way when the stream ends
are never learned. Time is the process's CPU time within `predict_one` and `learn_one`; rows are made before
the clock starts.
"""

import pickle
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from moe_adapt.drift.metrics import UNANSWERED
from moe_adapt.errors import UserError

__all__ = ["PrequentialRun", "test_then_train"]

_UNKNOWN = -2


@dataclass(frozen=True)
class PrequentialRun:
    """What came out.

    Attributes:
        labels: The labels, in order of their first appearance.
        truth: Numbers of the labels [n].
        predicted: Numbers of the predictions [n]; `UNANSWERED` for none, -2 for a label that the stream never
            shows.
        seconds: CPU time.
        rows: Rows at the checkpoints.
        seconds_at: CPU seconds up to each checkpoint.
        bytes_at: Size of the pickled model at each checkpoint; empty if not measured.
    """

    labels: list[Hashable]
    truth: np.ndarray
    predicted: np.ndarray
    seconds: float
    rows: list[int]
    seconds_at: list[float]
    bytes_at: list[int]


def test_then_train(
    model: Any,
    stream: Iterable[tuple[dict[str, Any], Hashable]],
    delay: int = 0,
    block: int = 1000,
    memory: bool = True,
    advance: Callable[[int], None] | None = None,
    observe: Callable[[int, Any], None] | None = None,
) -> PrequentialRun:
    """Predict and learn row by row.

    Args:
        model: With River's `predict_one` and `learn_one`.
        stream: Pairs of features and label.
        delay: Rows after which a label arrives.
        block: Rows between two checkpoints.
        memory: Measure the pickled model at the checkpoints.
        advance: Is told the rows done since the last call.
        observe: Is called with the number of rows and the model at every checkpoint.

    Raises:
        UserError: If the stream is empty or the delay negative.
    """
    if delay < 0:
        raise UserError(f"labels cannot arrive before their rows: the delay must be 0 or more, got {delay}.")
    truth: list[Hashable] = []
    answers: list[Hashable | None] = []
    waiting: deque[tuple[dict[str, Any], Hashable]] = deque()
    points: tuple[list[int], list[float], list[int]] = ([], [], [])
    seconds = 0.0
    rows = iter(stream)
    while part := list(islice(rows, block)):
        start = time.process_time()
        for x, y in part:
            answers.append(model.predict_one(x))
            if delay:
                waiting.append((x, y))
                if len(waiting) > delay:
                    model.learn_one(*waiting.popleft())
            else:
                model.learn_one(x, y)
        seconds += time.process_time() - start
        truth += [y for _, y in part]
        points[0].append(len(truth))
        points[1].append(seconds)
        if memory:
            points[2].append(len(pickle.dumps(model, protocol=pickle.HIGHEST_PROTOCOL)))
        if advance is not None:
            advance(len(part))
        if observe is not None:
            observe(len(truth), model)
    if not truth:
        raise UserError("the stream is empty: there is nothing to predict.")
    numbers = {label: number for number, label in enumerate(dict.fromkeys(truth))}
    return PrequentialRun(
        labels=list(numbers),
        truth=np.array([numbers[y] for y in truth], dtype=np.int32),
        predicted=np.array(
            [UNANSWERED if y is None else numbers.get(y, _UNKNOWN) for y in answers], dtype=np.int32
        ),
        seconds=seconds,
        rows=points[0],
        seconds_at=points[1],
        bytes_at=points[2],
    )


test_then_train.__test__ = False  # type: ignore[attr-defined]  # pytest: this is no test
