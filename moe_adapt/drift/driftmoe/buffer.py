"""Rows that wait for their step: inputs as they were when the row was routed, and targets."""

import numpy as np

__all__ = ["RowBuffer"]


class RowBuffer:
    """Inputs and targets of rows."""

    def __init__(self) -> None:
        self.inputs: list[np.ndarray] = []
        self.targets: list[np.ndarray] = []

    def __len__(self) -> int:
        return len(self.inputs)

    def add(self, inputs: np.ndarray, target: np.ndarray) -> None:
        """Keep a row."""
        self.inputs.append(inputs)
        self.targets.append(target)

    def fit(self, n_inputs: int, n_targets: int) -> None:
        """Fill up with zeros what waits, after inputs or targets were added."""
        self.inputs = [_padded(values, n_inputs) for values in self.inputs]
        self.targets = [_padded(values, n_targets) for values in self.targets]

    def take(self) -> tuple[np.ndarray, np.ndarray]:
        """Return all inputs [B, inputs] and targets [B, targets], and forget them."""
        found = np.array(self.inputs), np.array(self.targets)
        self.inputs, self.targets = [], []
        return found


def _padded(values: np.ndarray, size: int) -> np.ndarray:
    return values if len(values) == size else np.pad(values, (0, size - len(values)))
