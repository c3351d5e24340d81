r"""Nearest rows of two memories, as a voice: what holds now, and what held before and is not contradicted.

The short memory holds the last \(m\) rows. Its last \(m, m/2, m/4, \dots\) rows each answer every row before
it is learned (interleaved test-train). When a shorter window of them was right more often, over the rows of
its own length, by `MARGIN` or more, the older rows leave for the long memory, except those that the rows
that stay contradict: a row \((x, y)\) removes, of its \(k\) nearest in the other memory, those with another
label that are no further than the furthest of its \(k\) nearest that has label \(y\). Every new row cleans
the long memory in the same way. Short, long and both memories together give probabilities, the nearest rows
weighted by 1 / (distance + 0.001), and count by their odds, cubed.

Departures: windows are compared on the same rows and not each over its own, which shortens the memory less
often by chance; the three answers are weighed instead of the best one taken; a full long memory loses every
second row instead of being clustered.

Reference: Losing, Hammer and Wersing, KNN Classifier with Self Adjusting Memory for Heterogeneous Concept
Drift, ICDM 2016. Written from the paper's rules.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from moe_adapt.drift.committee.neighbours import FLOOR, NEAR, NEAREST
from moe_adapt.drift.committee.reliability import Reliability

__all__ = ["LEVELS", "MOST", "Memories"]

#: Most rows of a memory, least rows of a window, windows, and by how much a shorter one has to be better.
MOST, LEAST, LEVELS, MARGIN = 2500, 50, 6, 0.03
#: Share of a full short memory that stays, and rows of a block of distances.
_STAYS, _BLOCK = 0.9, 256
#: Of a window that was not asked.
UNKNOWN = -1
_PARTS = ("rows", "labels", "weights", "right")


class Memory:
    """Rows in the order in which they came, in arrays with room for twice as many.

    Args:
        most: Most rows.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.start = self.end = 0
        self._rows = np.zeros((2 * most, 0))
        self._squares, self._weights = np.zeros((2, 2 * most))
        self._labels = np.zeros(2 * most, dtype=np.int64)
        self._right = np.full((2 * most, LEVELS), UNKNOWN, dtype=np.int8)

    def __len__(self) -> int:
        return self.end - self.start

    @property
    def rows(self) -> np.ndarray:
        """Inputs [n, inputs]."""
        return self._rows[self.start : self.end]

    @property
    def squares(self) -> np.ndarray:
        """Squared lengths of the rows [n]."""
        return self._squares[self.start : self.end]

    @property
    def labels(self) -> np.ndarray:
        """Class numbers [n]."""
        return self._labels[self.start : self.end]

    @property
    def weights(self) -> np.ndarray:
        """Weights of the rows [n]."""
        return self._weights[self.start : self.end]

    @property
    def right(self) -> np.ndarray:
        """Which windows were right about each row: 1, 0 or `UNKNOWN` [n, LEVELS]."""
        return self._right[self.start : self.end]

    def grow(self, n_inputs: int) -> None:
        """Make room for more inputs; rows that did not have them are given 0, the mean."""
        if n_inputs > self._rows.shape[1]:
            more = np.zeros((len(self._rows), n_inputs - self._rows.shape[1]))
            self._rows = np.concatenate([self._rows, more], axis=1)

    def add(self, rows: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> None:
        """Add rows [n, inputs] behind the others; the caller makes sure that `most` is kept."""
        if self.end + len(rows) > len(self._rows):
            self.keep(np.arange(len(self)))
        new = slice(self.end, self.end + len(rows))
        self._rows[new], self._labels[new], self._weights[new] = rows, labels, weights
        self._squares[new] = (rows * rows).sum(axis=1)
        self._right[new] = UNKNOWN
        self.end += len(rows)

    def keep(self, places: np.ndarray) -> None:
        """Keep the rows at some places, in their order, and move them to the front."""
        parts: tuple[np.ndarray, ...] = self._rows, self._squares, self._labels, self._weights, self._right
        kept = [part[self.start + places] for part in parts]
        self.start, self.end = 0, len(places)
        for part, values in zip(parts, kept, strict=True):
            part[: self.end] = values

    def distances(self, vector: np.ndarray) -> np.ndarray:
        """Return the squared distances of all rows to inputs [inputs]."""
        found = self.squares - 2.0 * (self.rows @ vector)
        found += vector @ vector
        return np.maximum(found, 0.0, out=found)


@dataclass(slots=True)
class Window:
    """The rows of a memory that are nearest to a row.

    Attributes:
        places: Where they are in the memory [k].
        squares: Squared distances [k].
        labels: Class numbers [k].
        weights: Of the rows [k].
    """

    places: np.ndarray
    squares: np.ndarray
    labels: np.ndarray
    weights: np.ndarray

    @classmethod
    def of(cls, memory: Memory, squares: np.ndarray, first: int = 0) -> "Window":
        """Return the nearest of the rows from `first` on, given all squared distances."""
        places = first + _nearest(squares[first:])
        return cls(places, squares[places], memory.labels[places], memory.weights[places])

    def with_other(self, other: "Window") -> "Window":
        """Return the nearest of both; `places` have no meaning then."""
        parts = [
            np.concatenate([getattr(self, name), getattr(other, name)])
            for name in ("places", "squares", "labels", "weights")
        ]
        nearest = _nearest(parts[1])
        return Window(*(part[nearest] for part in parts))

    def proba(self, n_classes: int) -> np.ndarray:
        """Return probabilities [C]."""
        votes = np.full(n_classes, FLOOR)
        np.add.at(votes, self.labels, self.weights / (np.sqrt(self.squares) + NEAR))
        return votes / votes.sum()


class Memories:
    """Both memories and the three answers they give.

    Args:
        most: Most rows of each memory.

    Attributes:
        short: The last rows.
        long: What earlier rows left that is not contradicted.
        reliability: Of the answers of the short memory, the long one, and both.
    """

    def __init__(self, most: int = MOST) -> None:
        self.short, self.long = Memory(most), Memory(most)
        self.reliability = Reliability(3)
        self._vector: np.ndarray | None = None

    def arrays(self) -> dict[str, np.ndarray]:
        """Return what is known, by name."""
        found = {
            f"{name}/{part}": getattr(memory, part).copy()
            for name, memory in (("short", self.short), ("long", self.long))
            for part in _PARTS
        }
        return found | {"answers": self.reliability.sums}

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take over what `arrays` returned; shapes and classes have been checked."""
        for name, memory in (("short", self.short), ("long", self.long)):
            rows, labels, weights, right = (arrays[f"{name}/{part}"] for part in _PARTS)
            memory.start = memory.end = 0
            memory.grow(rows.shape[1])
            memory.add(rows, labels, weights)
            memory.right[:] = right
        self.reliability.sums[:] = arrays["answers"]

    def grow(self, n_inputs: int) -> None:
        """Make room for more inputs."""
        self.short.grow(n_inputs)
        self.long.grow(n_inputs)

    def proba(self, vector: np.ndarray, n_classes: int) -> np.ndarray:
        """Return probabilities [C] for inputs [inputs]."""
        self._vector, self._n_classes = vector, n_classes
        self._squares = self.short.distances(vector)
        self._near = Window.of(self.short, self._squares)
        self._far = Window.of(self.long, self.long.distances(vector))
        three = (self._near, self._far, self._near.with_other(self._far))
        self._answers = np.stack([window.proba(n_classes) for window in three])
        found = self.reliability.odds**3 @ self._answers
        return found / found.sum()

    def add(self, vector: np.ndarray, y: int, w: float) -> None:
        """Learn the row of class number `y` and weight `w` that was asked about last."""
        if self._vector is not vector:
            self.proba(vector, y + 1)
        self.reliability.update(self._answers.argmax(axis=1) == y, w)
        right = self._windows_right(y)
        self._clean_long(y)
        self.short.add(vector[None], np.array([y]), np.array([w]))
        self.short.right[-1] = right
        self._vector = None
        self._shorten()

    def _windows_right(self, y: int) -> np.ndarray:
        """Return which windows of the short memory give label `y` to the row that was asked about."""
        found = np.full(LEVELS, UNKNOWN, dtype=np.int8)
        size = len(self.short)
        for level in range(LEVELS):
            if size >> level < LEAST:
                break
            first = size - (size >> level)
            window = self._near if first == 0 else Window.of(self.short, self._squares, first)
            found[level] = window.proba(self._n_classes).argmax() == y
        return found

    def _clean_long(self, y: int) -> None:
        same, other = self._near.labels == y, self._far.labels != y
        if same.any() and other.any():
            wrong = self._far.places[other & (self._far.squares <= self._near.squares[same].max())]
            if len(wrong):
                self.long.keep(np.delete(np.arange(len(self.long)), wrong))

    def _shorten(self) -> None:
        """Let the older rows of the short memory leave if it is full or a shorter window is better."""
        size, short = len(self.short), self.short
        if size > short.most:
            self._leave(size - int(_STAYS * short.most))
            return
        best, gain = 0, MARGIN
        for level in range(1, LEVELS):
            asked = short.right[size - (size >> level) :, [0, level]]
            asked = asked[(asked != UNKNOWN).all(axis=1)]
            if size >> level < LEAST or len(asked) < LEAST:
                break
            whole, own = asked.mean(axis=0)
            if own - whole > gain:
                best, gain = level, own - whole
        if best:
            self._leave(size - (size >> best))
            short.right[:, : LEVELS - best] = short.right[:, best:]
            short.right[:, LEVELS - best :] = UNKNOWN

    def _leave(self, count: int) -> None:
        """Move the first rows of the short memory to the long one, but for those that others contradict."""
        short, long = self.short, self.long
        rows, labels, weights = (part[:count].copy() for part in (short.rows, short.labels, short.weights))
        short.start += count
        kept = ~_contradicted(short, rows, labels)
        over = len(long) + int(kept.sum()) - long.most
        if over > 0:
            long.keep(np.arange(0, len(long), 2))
        room = long.most - len(long)
        long.add(rows[kept][-room:], labels[kept][-room:], weights[kept][-room:])


def _nearest(squares: np.ndarray) -> np.ndarray:
    if len(squares) <= NEAREST:
        return np.arange(len(squares))
    return np.argpartition(squares, NEAREST - 1)[:NEAREST]


def _contradicted(short: Memory, rows: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return which rows [n, inputs] the rows of the short memory contradict [n]."""
    found = np.zeros(len(rows), dtype=bool)
    lengths = (rows * rows).sum(axis=1)
    for start in range(0, len(short), _BLOCK):
        block = slice(start, start + _BLOCK)
        own, own_labels, squares = short.rows[block], short.labels[block], short.squares[block, None]
        among = squares + short.squares - 2.0 * own @ short.rows.T
        among[np.arange(len(own)), start + np.arange(len(own))] = np.inf
        near, gaps = _nearest_of_each(among)
        same = (short.labels[near] == own_labels[:, None]) & (gaps < np.inf)
        reach = np.where(same, gaps, -np.inf).max(axis=1)
        near, gaps = _nearest_of_each(squares + lengths - 2.0 * own @ rows.T)
        wrong = (gaps <= reach[:, None]) & (labels[near] != own_labels[:, None])
        found[near[wrong]] = True
    return found


def _nearest_of_each(squares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return places and squared distances of the nearest [rows, k] of each row of squared distances."""
    k = min(NEAREST, squares.shape[1])
    places = np.argpartition(squares, k - 1, axis=1)[:, :k]
    return places, np.take_along_axis(squares, places, axis=1)
