r"""What the networks see of a row: numbers, scaled by what was seen so far, and indicators of words.

Numbers, also those that stand for nominal values, enter as they are; words and booleans become one
indicator per value, appended when a value is first met. With `scale`, numbers are standardised by
running mean and deviation, \(\hat x = (x - \mu) / \sigma\), clipped to \([-10, 10]\), before the row updates
them. A missing value is 0. A value more than a hundred deviations away moves mean and deviation as one that
is a hundred away: one wild number must not hide a column for ever.
DriftMoE's release feeds raw values; on unscaled tables that costs up to twenty points.
"""

import math
from numbers import Number

import numpy as np

from moe_adapt.drift.hoeffding.encoding import FeatureTable, Row

__all__ = ["FAR", "MOST", "RAW_MOST", "SETTLED", "NetworkInputs"]

#: Deviations within which a value counts in full, once there are so many rows.
FAR, SETTLED = 100.0, 30
#: Scaled values are clipped to this, unscaled ones to that: their squares have to be numbers in single
#: precision.
MOST, RAW_MOST = 10.0, 1e9

# numbers as arrays: numpy converts a Python number anew in every operation
_HIGH, _LOW, _ZERO, _ONE = (np.array(value) for value in (MOST, -MOST, 0.0, 1.0))


class NetworkInputs:
    """Vectors for the networks.

    Args:
        scale: Standardise numbers.
        dtype: Of the vectors.
    """

    def __init__(self, scale: bool, dtype: type = np.float32) -> None:
        self.scale, self.dtype = scale, dtype
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
        self.scaled = np.zeros(0)  # 1 for a number, 0 for an indicator, whose mean stays 0
        self._inverse: np.ndarray | None = None  # one over the deviation, renewed after every row

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
            self.scaled = np.append(self.scaled, float(scaled))
            self._inverse = None
        return self.place[key]

    def restore(self, features: FeatureTable, mean: np.ndarray, squares: np.ndarray, count: int) -> None:
        """Take over saved statistics; `place` has been restored before."""
        self.n_inputs = len(self.place)
        self.scaled = np.array([float(kind == "number") for kind, _, _ in self.place])
        self.mean, self.squares, self.count = mean.copy(), squares.copy(), count
        self.fit(features)

    def raw(self, row: Row) -> np.ndarray:
        """Return the unscaled inputs [inputs], NaN for a missing number."""
        if not self.columns and len(row.numbers) == self.n_inputs:
            return row.numbers
        values = [0.0] * self.n_inputs
        for (numbers, inputs), code in zip(self.columns, row.codes, strict=True):
            if code >= 0:
                values[inputs[code]] = numbers[code]
        found = np.array(values)
        if len(row.numbers):
            found[self.numeric] = row.numbers
        return found

    def vector(self, raw: np.ndarray) -> np.ndarray:
        """Return the inputs of the networks [inputs], by what was seen so far."""
        if not self.scale:
            found = np.minimum(np.maximum(raw, -RAW_MOST), RAW_MOST)
        else:
            if self._inverse is None:
                deviation = self.squares / max(self.count - 1, 1)
                np.sqrt(deviation, out=deviation)
                self._inverse = _ONE - self.scaled
                np.divide(_ONE, deviation, out=self._inverse, where=deviation > _ZERO)
            found = raw - self.mean
            found *= self._inverse
            np.minimum(found, _HIGH, out=found)
            np.maximum(found, _LOW, out=found)
        if math.isnan(found.dot(found)):
            found = np.where(np.isnan(found), 0.0, found)
        return found.astype(self.dtype)

    def bounded(self, numbers: np.ndarray) -> np.ndarray:
        """Return the numbers of a row [F], none further than a hundred deviations from its mean."""
        if not self.scale or self.count <= SETTLED or not len(numbers):
            return numbers
        mean, reach = self.mean[self.numeric], self._reach()[self.numeric]
        return np.minimum(np.maximum(numbers, mean - reach), mean + reach)

    def _reach(self) -> np.ndarray:
        """Return a hundred deviations of every input, infinity where it has none."""
        reach = FAR * np.sqrt(self.squares / (self.count - 1))
        np.copyto(reach, np.inf, where=reach == 0)
        return reach

    def update(self, raw: np.ndarray) -> None:
        """Let a row move mean and deviation; a missing value counts as the mean."""
        if not self.scale:
            return
        self.count += 1
        delta = raw - self.mean
        if math.isnan(delta.dot(delta)):
            delta = np.where(np.isnan(delta), 0.0, delta)
        if self.count > SETTLED:
            reach = self._reach()
            np.clip(delta, -reach, reach, out=delta)
        delta *= self.scaled
        self.mean += delta / self.count
        delta *= delta
        delta *= (self.count - 1) / self.count
        self.squares += delta
        self._inverse = None
