r"""What the networks see of a row: numbers, scaled by what was seen so far, and indicators of words.

Numbers, also those that stand for nominal values, enter as they are; words and booleans become one
indicator per value, appended when a value is first met. With `scale`, numbers are standardised by
running mean and deviation, \(\hat x = (x - \mu) / \sigma\), clipped to \([-10, 10]\), before the row updates
them. A missing value is 0.
DriftMoE's release feeds raw values; on unscaled tables that costs up to twenty points.
"""

from numbers import Number

import numpy as np

from moe_adapt.learners.hoeffding.encoding import FeatureTable, Row

__all__ = ["NetworkInputs"]

_CLIP = 10.0


class NetworkInputs:
    """Vectors for the networks.

    Args:
        scale: Standardise numbers.
    """

    def __init__(self, scale: bool) -> None:
        self.scale = scale
        self.n_inputs = 0
        self.place: dict[
            tuple[str, int, int], int
        ] = {}  # ("number", column, 0), ("value", column, code) -> input
        self.numeric = np.empty(0, dtype=np.intp)
        self.columns: list[
            tuple[list[float], list[int]]
        ] = []  # per nominal column: number or input of each code
        self.count = 0
        self.mean = np.zeros(0)
        self.squares = np.zeros(0)
        self.scaled = np.zeros(0, dtype=bool)
        self._inverse: np.ndarray | None = None

    def fit(self, features: FeatureTable) -> None:
        """Make room for the columns and values that the table holds by now."""
        for column in range(len(self.numeric), len(features.numeric)):
            self.numeric = np.append(self.numeric, self._new(("number", column, 0), True))
        for column, known in enumerate(features.values):
            if column == len(self.columns):
                self.columns.append(([], []))
            numbers, inputs = self.columns[column]
            for value, code in list(known.items())[len(numbers) :]:
                is_number = isinstance(value, Number) and not isinstance(value, bool)
                numbers.append(float(value) if is_number else 1.0)  # type: ignore[arg-type]
                key = ("number", -1 - column, 0) if is_number else ("value", column, code)
                inputs.append(self._new(key, is_number))

    def _new(self, key: tuple[str, int, int], scaled: bool) -> int:
        if key not in self.place:
            self.place[key] = self.n_inputs
            self.n_inputs += 1
            self.mean, self.squares = np.append(self.mean, 0.0), np.append(self.squares, 0.0)
            self.scaled = np.append(self.scaled, scaled)
            self._inverse = None
        return self.place[key]

    def restore(self, features: FeatureTable, mean: np.ndarray, squares: np.ndarray, count: int) -> None:
        """Take over saved statistics; `place` has been restored before."""
        self.n_inputs = len(self.place)
        self.scaled = np.array([kind == "number" for kind, _, _ in self.place], dtype=bool)
        self.mean, self.squares, self.count = mean.copy(), squares.copy(), count
        self.fit(features)

    def raw(self, row: Row) -> np.ndarray:
        """Return the unscaled inputs [inputs], NaN for a missing number."""
        if not self.columns and len(row.numbers) == self.n_inputs:
            return row.numbers
        values = np.zeros(self.n_inputs)
        values[self.numeric] = row.numbers
        for (numbers, inputs), code in zip(self.columns, row.codes, strict=True):
            if code >= 0:
                values[inputs[code]] = numbers[code]
        return values

    def vector(self, raw: np.ndarray) -> np.ndarray:
        """Return the inputs of the networks [inputs], by what was seen so far."""
        if not self.scale:
            found = raw
        else:
            if self._inverse is None:
                deviation = np.sqrt(self.squares / max(self.count - 1, 1))
                known = self.scaled & (deviation > 0)
                self._inverse = np.where(known, 1.0 / np.where(known, deviation, 1.0), ~self.scaled)
            found = (raw - np.where(self.scaled, self.mean, 0.0)) * self._inverse
            np.clip(found, -_CLIP, _CLIP, out=found)
        if found.dot(found) != found.dot(found):
            found = np.where(np.isnan(found), 0.0, found)
        return found.astype(np.float32)

    def update(self, raw: np.ndarray) -> None:
        """Let a row move mean and deviation; a missing value counts as the mean."""
        if not self.scale:
            return
        self.count += 1
        delta = raw - self.mean
        if delta.dot(delta) != delta.dot(delta):
            delta = np.where(np.isnan(delta), 0.0, delta)
        self.mean += delta / self.count
        self.squares += delta * delta * ((self.count - 1) / self.count)
        self._inverse = None
