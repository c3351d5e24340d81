r"""Is an expert wrong more often than it was? One test for all experts at once.

The Hoeffding drift detection method with averages (HDDM-A): beside the mean error \(\bar e_n\) of all rows it
keeps the mean \(\bar e_m\) up to the row \(m\) at which \(\bar e_m + \sqrt{\ln(1/\delta) / 2m}\) was least,
and alarms when \[ \bar e_n - \bar e_m \ge \sqrt{\tfrac12 \left(\tfrac1m - \tfrac1n\right) \ln(2/\delta)} . \]
A few array operations every `every` rows do the test for all experts; the state is four arrays, so it can be
saved. Any detector of River can stand in its place, a clone for each expert.

Reference: Frias-Blanco et al., Online and Non-Parametric Drift Detection Methods Based on Hoeffding's Bounds,
TKDE 2015.
"""

from typing import Any

import numpy as np
from river import base

from moe_adapt.errors import UserError

__all__ = ["MOST_DRIFTS", "DetectorWatch", "ErrorWatch", "error_watch"]

#: How many of the last drifts are kept.
MOST_DRIFTS = 1000


class ErrorWatch:
    """Error rates of experts.

    Args:
        n_experts: How many experts.
        delta: Probability of a false alarm.
        every: Rows between two tests.
    """

    ARRAYS = ("rows", "errors", "best_rows", "best_errors")

    def __init__(self, n_experts: int, delta: float = 0.001, every: int = 8) -> None:
        self.delta, self.every = delta, every
        self.rows, self.errors, self.best_rows, self.best_errors = np.zeros((4, n_experts))
        self.waiting = 0

    def update(self, wrong: np.ndarray) -> list[int]:
        """Count a row and return the experts whose error has risen.

        Args:
            wrong: Which experts were wrong [E].
        """
        self.rows += 1
        self.errors += wrong
        self.waiting += 1
        if self.waiting < self.every:
            return []
        self.waiting = 0
        log = np.log(1.0 / self.delta)
        mean, bound = self.errors / self.rows, np.sqrt(log / (2.0 * self.rows))
        safe = np.maximum(self.best_rows, 1.0)
        best = self.best_errors / safe
        lower = (self.best_rows == 0) | (mean + bound <= best + np.sqrt(log / (2.0 * safe)))
        self.best_rows = np.where(lower, self.rows, self.best_rows)
        self.best_errors = np.where(lower, self.errors, self.best_errors)
        gap = np.maximum(1.0 / self.best_rows - 1.0 / self.rows, 0.0)
        alarm = ~lower & (mean - best >= np.sqrt(0.5 * gap * np.log(2.0 / self.delta)))
        return np.flatnonzero(alarm).tolist() if alarm.any() else []

    def forget(self, expert: int) -> None:
        """Start an expert's statistics afresh."""
        for name in self.ARRAYS:
            getattr(self, name)[expert] = 0.0

    def add(self) -> None:
        """Watch one expert more."""
        for name in self.ARRAYS:
            setattr(self, name, np.append(getattr(self, name), 0.0))


class DetectorWatch:
    """The same with detectors of River, which are told 1 for an error.

    Args:
        n_experts: How many experts.
        prototype: What each expert gets a clone of.
    """

    def __init__(self, n_experts: int, prototype: Any) -> None:
        self.prototype = prototype
        self.detectors = [prototype.clone() for _ in range(n_experts)]

    def update(self, wrong: np.ndarray) -> list[int]:
        """Count a row and return the experts whose detector has found a drift [E]."""
        for detector, error in zip(self.detectors, wrong.tolist(), strict=True):
            detector.update(error)
        return [expert for expert, detector in enumerate(self.detectors) if detector.drift_detected]

    def forget(self, expert: int) -> None:
        """Give an expert a fresh detector."""
        self.detectors[expert] = self.prototype.clone()

    def add(self) -> None:
        """Watch one expert more."""
        self.detectors.append(self.prototype.clone())


def error_watch(detector: Any, n_experts: int, delta: float = 0.001) -> ErrorWatch | DetectorWatch:
    """Return what watches the errors of experts.

    Args:
        detector: A detector of River, or whether to watch with our own.
        n_experts: How many experts.
        delta: Of our own.

    Raises:
        UserError: If it is neither.
    """
    if isinstance(detector, bool):
        return ErrorWatch(n_experts, delta)
    if isinstance(detector, (base.DriftDetector, base.BinaryDriftDetector)):
        return DetectorWatch(n_experts, detector)
    raise UserError(f"detector is True, False or a drift detector of River, not {detector!r}.")
