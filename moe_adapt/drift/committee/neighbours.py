r"""The nearest of the last rows, as a voice that learns which columns matter.

A ring keeps the last `WINDOW` rows, scaled as they were when they were learned. The squared distance is
\(d_i^2 = \sum_j r_j (x_j - x_{ij})^2\), and the nearest rows say
\(P_c \propto 0.01 + \sum_{i \in \text{nearest}} [y_i = c]\,w_i / (d_i^2 + 0.001)\). Two answers, of the last
`RECENT` rows and of all, count by how right they were lately (odds, to the sixth power).

**Columns.** A row near the boundary, with its own class and another one among its nearest rows, tells which
columns part them. The squared gaps in column \(j\) to the nearest of each kind move two means, \(s_j\) and
\(o_j\), half of which is forgotten in `HALF_LIFE` such rows; \(r_j \propto ((o_j + 0.01) / (s_j + 0.01))^5\)
with mean 1. A column in which the other class is further away counts more; noise is alike on both sides.

Departure from Relief: one pass over a stream with decayed means, rows at the boundary alone, a ratio instead
of a difference, and the distances that the weights themselves define. What that is worth is in the table
"Nearest rows" of `benchmarks/results/drift.md`. Of rows at the same distance the newer counts.

Reference: Kira and Rendell, A Practical Approach to Feature Selection, ICML 1992 (Relief). Written from the
paper's idea.
"""

import numpy as np

from moe_adapt.drift.committee.reliability import Reliability

__all__ = [
    "FLOOR",
    "HALF_LIFE",
    "NEAR",
    "NEAREST",
    "RECENT",
    "SPREAD",
    "STEP",
    "WINDOW",
    "Neighbours",
    "nearest",
    "relevance_of",
]

WINDOW, RECENT, NEAREST = 1000, 500, 5
FLOOR, NEAR = 0.01, 0.001
HALF_LIFE, SPREAD = 200, 0.01
STEP = 1.0 - 0.5 ** (1.0 / HALF_LIFE)


def nearest(squares: np.ndarray) -> np.ndarray:
    """Return the places of the `NEAREST` least of some numbers, the least first, of equals the first."""
    places = np.arange(len(squares))
    if len(squares) > NEAREST:
        places = np.flatnonzero(squares <= np.partition(squares, NEAREST - 1)[NEAREST - 1])
    return places[np.argsort(squares[places], kind="stable")][:NEAREST]


def relevance_of(gaps: np.ndarray) -> np.ndarray:
    """Return what each input counts in a distance [inputs].

    Args:
        gaps: Mean squared gaps and `SPREAD`, to the nearest row of the same class and of another [2, inputs].
    """
    share = gaps[1] / gaps[0]
    square = share * share
    found = square * square * share
    if len(found):
        found /= np.cumsum(found)[-1] / len(found)
    return found.astype(np.float32)


class Neighbours:
    """A ring of rows, in single precision.

    Attributes:
        rows: Inputs, a column per row, so that distances add up column by column [inputs, WINDOW].
        labels: Class numbers [WINDOW].
        weights: Weights of the rows [WINDOW].
        seen: Rows so far; the next one goes to place `seen % WINDOW`.
        gaps: As `relevance_of` wants them [2, inputs].
        relevance: What each input counts in a distance [inputs].
        reliability: Of the answers of the recent rows, and of all.
    """

    def __init__(self) -> None:
        self.rows = np.zeros((0, WINDOW), dtype=np.float32)
        self.labels = np.zeros(WINDOW, dtype=np.int64)
        self.weights = np.zeros(WINDOW)
        self.seen = 0
        self.gaps, self.relevance = np.ones((2, 0)), np.ones(0, dtype=np.float32)
        self.reliability = Reliability(2)
        self._asked: np.ndarray | None = None

    def grow(self, n_inputs: int) -> None:
        """Make room for more inputs; rows that did not have them are given 0, the mean."""
        more = n_inputs - len(self.rows)
        if more > 0:
            self.rows = np.concatenate([self.rows, np.zeros((more, WINDOW), dtype=np.float32)])
            self.gaps = np.concatenate([self.gaps, np.ones((2, more))], axis=1)
            self.relevance = relevance_of(self.gaps)

    def proba(self, vector: np.ndarray, n_classes: int) -> np.ndarray:
        """Return probabilities [C] for inputs [inputs]."""
        self._asked = vector
        count = min(self.seen, WINDOW)
        self._newest = (self.seen - 1 - np.arange(count)) % WINDOW
        gaps = self.rows[:, :count] - vector.astype(np.float32)[:, None]
        gaps *= gaps
        gaps *= self.relevance[:, None]
        self._squares = gaps.sum(axis=0)[self._newest]
        recent, self._near = nearest(self._squares[:RECENT]), nearest(self._squares)
        self._answers = np.stack([self._answer(n_classes, near) for near in (recent, self._near)])
        found = self.reliability.odds**6 @ self._answers
        return found / found.sum()

    def _answer(self, n_classes: int, near: np.ndarray) -> np.ndarray:
        votes = np.full(n_classes, FLOOR)
        for place, square in zip(self._newest[near], self._squares[near].tolist(), strict=True):
            votes[self.labels[place]] += self.weights[place] / (square + NEAR)
        return votes / votes.sum()

    def add(self, vector: np.ndarray, y: int, w: float) -> None:
        """Learn a row of class number `y` and weight `w`; it takes the place of the oldest."""
        if self._asked is not vector:
            self.proba(vector, 1 + max(int(self.labels.max()), y))
        self.reliability.update(self._answers.argmax(axis=1) == y, w)
        self._compare(vector, y)
        place = self.seen % WINDOW
        self.rows[:, place] = vector
        self.labels[place], self.weights[place] = y, w
        self.seen += 1
        self._asked = None

    def _compare(self, vector: np.ndarray, y: int) -> None:
        """Let the nearest rows of the same class and of another, where both are near, weigh the inputs."""
        places = self._newest[self._near]
        same = self.labels[places] == y
        if not same.any() or same.all():
            return
        for side, own in enumerate((same, ~same)):
            gap = (self.rows[:, places[own][0]] - vector.astype(np.float32)).astype(np.float64)
            self.gaps[side] += (gap * gap + SPREAD - self.gaps[side]) * STEP
        self.relevance[:] = relevance_of(self.gaps)
