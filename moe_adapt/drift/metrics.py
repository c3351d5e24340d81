r"""Prequential metrics: how good test-then-train predictions were, beside what takes no learning.

All are of the form \(\kappa = (p_0 - p_c) / (1 - p_c)\) with \(p_0\) the accuracy and \(p_c\) that of a
reference over the same rows: agreement by chance (kappa), the majority class so far (kappa-M), the previous
label (kappa-T).
References see the past only and are wrong at the first row; where classes tie for the majority, the reference
is credited with the right one, so kappa-M never flatters. `moa=True` counts as MOA does: the majority
includes the present label (ties: the lowest class), the no-change reference starts with class 0. Where \(1 -
p_c = 0\) the result is nan.

A prediction that is missing (`UNANSWERED`) is wrong. River's evaluators skip such rows.

Reference: Bifet et al., Efficient Online Evaluation of Big Data Stream Classifiers, KDD 2015.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

__all__ = [
    "UNANSWERED",
    "accuracy",
    "agreement",
    "kappa",
    "majority_hits",
    "no_change_hits",
    "prequential_metrics",
    "recovery",
    "windowed",
]

#: Number that stands for a prediction that a model did not give.
UNANSWERED = -1


def accuracy(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Return the share of right predictions; nan without rows.

    Args:
        truth: Class numbers [n].
        predicted: Class numbers [n], `UNANSWERED` where there is no prediction.
    """
    return float(np.mean(truth == predicted)) if len(truth) else float("nan")


def agreement(observed: float, reference: float) -> float:
    """Return (observed - reference) / (1 - reference), nan if the reference is perfect."""
    return (observed - reference) / (1.0 - reference) if reference < 1.0 else float("nan")


def kappa(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Return Cohen's kappa.

    >>> kappa(np.array([0, 0, 1, 1, 1, 0, 1, 1]), np.array([0, 1, 1, 1, 0, 0, 1, 0]))
    0.25
    """
    classes = np.union1d(truth, predicted[predicted >= 0])
    chance = sum(float(np.mean(truth == c) * np.mean(predicted == c)) for c in classes)
    return agreement(accuracy(truth, predicted), chance)


def majority_hits(truth: np.ndarray, moa: bool = False) -> np.ndarray:
    """Return where the majority class so far is the label [n]."""
    rows = np.arange(len(truth))
    onehot = truth[:, None] == np.unique(truth)[None, :]
    counts = np.cumsum(onehot, axis=0)
    if moa:
        return onehot[rows, counts.argmax(axis=1)]
    past = counts - onehot
    own = past[onehot]
    return (own == past.max(axis=1, initial=0)) & (own > 0)


def no_change_hits(truth: np.ndarray, moa: bool = False) -> np.ndarray:
    """Return where the previous label is the label [n]."""
    hits = np.zeros(len(truth), dtype=bool)
    hits[1:] = truth[1:] == truth[:-1]
    if moa and len(truth):
        hits[0] = truth[0] == 0
    return hits


def prequential_metrics(truth: np.ndarray, predicted: np.ndarray, moa: bool = False) -> dict[str, float]:
    """Return accuracy, kappa, kappa_m, kappa_t over all rows, and the share of unanswered ones.

    Args:
        truth: Class numbers [n].
        predicted: Class numbers [n], `UNANSWERED` where there is no prediction.
        moa: Count the references as MOA does.
    """
    right = accuracy(truth, predicted)
    return {
        "accuracy": right,
        "kappa": kappa(truth, predicted),
        "kappa_m": agreement(right, float(np.mean(majority_hits(truth, moa)))),
        "kappa_t": agreement(right, float(np.mean(no_change_hits(truth, moa)))),
        "unanswered": float(np.mean(predicted == UNANSWERED)),
    }


def windowed(
    truth: np.ndarray, predicted: np.ndarray, window: int = 1000, every: int = 1000
) -> dict[str, list[Any]]:
    """Return cumulative accuracy and, over the last `window` rows, accuracy, kappa-M and kappa-T.

    Args:
        truth: Class numbers [n].
        predicted: Class numbers [n].
        window: Rows of the sliding window; shorter at the beginning.
        every: Rows between two points; the last row is always one.

    Returns:
        Lists under rows, cumulative, accuracy, kappa_m, kappa_t; nan becomes None.
    """
    ends = np.unique([*range(every, len(truth) + 1, every), len(truth)])
    starts = np.maximum(ends - window, 0)

    def means(hits: np.ndarray, begin: np.ndarray) -> np.ndarray:
        total = np.concatenate([[0], np.cumsum(hits)])
        return (total[ends] - total[begin]) / (ends - begin)

    right = truth == predicted
    found = means(right, starts)
    curves: dict[str, list[Any]] = {
        "rows": ends.tolist(),
        "cumulative": means(right, np.zeros_like(ends)).tolist(),
        "accuracy": found.tolist(),
    }
    for name, hits in (("kappa_m", majority_hits(truth)), ("kappa_t", no_change_hits(truth))):
        pairs = zip(found, means(hits, starts), strict=True)
        curves[name] = [None if reference == 1.0 else agreement(p, reference) for p, reference in pairs]
    return curves


def recovery(
    truth: np.ndarray,
    predicted: np.ndarray,
    drifts: Sequence[int],
    window: int = 1000,
    eps: float = 0.01,
) -> list[dict[str, Any]]:
    """Return for every drift how long accuracy stays below what it was.

    Args:
        truth: Class numbers [n].
        predicted: Class numbers [n].
        drifts: Rows at which the rule changes.
        window: Rows over which accuracy is taken, before the drift and after it.
        eps: What counts as being back.

    Returns:
        Per drift: drift, before (accuracy of the window before it), lowest (least accuracy of a window after
        it), rows (from the drift to the end of the first whole window back within `eps`; None if accuracy is
        not back before the next drift).
    """
    total = np.concatenate([[0], np.cumsum(truth == predicted)])
    found = []
    for drift, end in pairwise([*drifts, len(truth)]):
        start = max(drift - window, 0)
        before = (total[drift] - total[start]) / (drift - start)
        ends = np.arange(drift + window, end + 1)
        after = (total[ends] - total[ends - window]) / window
        back = np.flatnonzero(after >= before - eps)
        found.append(
            {
                "drift": int(drift),
                "before": float(before),
                "lowest": float(after.min()) if len(after) else None,
                "rows": int(ends[back[0]] - drift) if len(back) else None,
            }
        )
    return found
