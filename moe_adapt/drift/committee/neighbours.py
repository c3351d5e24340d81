r"""The nearest of the last rows, as a voice.

\(P_c \propto 0.01 + \sum_{i \in \text{nearest}} [y_i = c]\,w_i / (d_i + 0.001)\).
A ring of `WINDOW` rows, scaled as they were when they were learned; the distance \(d_i\) is Euclidean. Of
rows at the same distance the one in the earlier place of the ring counts. On fast drifts and on streams
with many small clusters this is worth more than any other voice; twice the window was worth less.
"""

import numpy as np

__all__ = ["FLOOR", "NEAR", "NEAREST", "WINDOW", "Neighbours"]

WINDOW, NEAREST = 500, 5
FLOOR, NEAR = 0.01, 0.001


class Neighbours:
    """A ring of rows.

    Attributes:
        rows: Inputs, a column per row, so that distances add up column by column [inputs, WINDOW].
        labels: Class numbers [WINDOW].
        weights: Weights of the rows [WINDOW].
        seen: Rows so far; the next one goes to place `seen % WINDOW`.
    """

    def __init__(self) -> None:
        self.rows = np.zeros((0, WINDOW))
        self.labels = np.zeros(WINDOW, dtype=np.int64)
        self.weights = np.zeros(WINDOW)
        self.seen = 0

    def grow(self, n_inputs: int) -> None:
        """Make room for more inputs; rows that did not have them are given 0, the mean."""
        if n_inputs > len(self.rows):
            self.rows = np.concatenate([self.rows, np.zeros((n_inputs - len(self.rows), WINDOW))])

    def proba(self, vector: np.ndarray, n_classes: int) -> np.ndarray:
        """Return probabilities [C] for inputs [inputs]."""
        votes = np.full(n_classes, FLOOR)
        for place, weight in self.near(vector):
            votes[self.labels[place]] += weight
        return votes / votes.sum()

    def near(self, vector: np.ndarray) -> list[tuple[int, float]]:
        """Return the places of the nearest rows and what they count."""
        count = min(self.seen, WINDOW)
        if not count:
            return []
        gaps = self.rows[:, :count] - vector[:, None]
        gaps *= gaps
        squares = gaps.sum(axis=0)
        return [
            (place, self.weights[place] / (squares[place] ** 0.5 + NEAR)) for place in self._nearest(squares)
        ]

    def _nearest(self, squares: np.ndarray) -> list[int]:
        if len(squares) <= NEAREST:
            return list(range(len(squares)))
        limit = np.partition(squares, NEAREST - 1)[NEAREST - 1]
        nearer = np.flatnonzero(squares < limit).tolist()
        level = np.flatnonzero(squares == limit).tolist()
        return sorted(nearer + level[: NEAREST - len(nearer)])

    def add(self, vector: np.ndarray, y: int, w: float) -> None:
        """Keep a row of class number `y` and weight `w` in the place of the oldest."""
        place = self.seen % WINDOW
        self.rows[:, place] = vector
        self.labels[place], self.weights[place] = y, w
        self.seen += 1
