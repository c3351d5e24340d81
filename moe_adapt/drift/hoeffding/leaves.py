r"""The leaves of all trees of a pool in flat arrays: class counts, normal distributions, value tables.

One slot per leaf, whichever tree it belongs to, so one array operation scores or updates the leaves of all
trees that a row falls into. The naive Bayes score of class \(c\) for numbers \(x\) and values \(v\) is
\[ \log\frac{w_c}{\sum_k w_k} + \sum_f \log\mathcal N(x_f; \mu_{cf}, \sigma^2_{cf})
   + \sum_g \log\frac{t_{cg}(v_g)}{\sum_u t_{cg}(u)} \]
without columns that have no variance, no observation or a count of zero. What does not depend on the row
(\(-1 / 2\sigma^2\) and the logarithms) is kept up to date where it changes, which is one class of one leaf
per row and tree. Means and variances follow Welford's weighted recurrence. This is what River's trees keep in
dictionaries.
"""

import numpy as np

from moe_adapt.drift.hoeffding.encoding import Row

__all__ = ["LeafStore", "leaf_shapes", "room"]

_GROWTH = 1.5
# numbers as arrays: numpy converts a Python number anew in every operation
_ZERO, _ONE, _OVER_PI = np.array(0.0), np.array(1.0), np.array(-1.0 / np.pi)
# what a row far from all that a class has shown costs at most: -inf would leave no class at all
_LOWEST = np.array(-1e200)


def room(count: int) -> int:
    """Return the places to keep for `count` classes or values: all of a few, a quarter more of many."""
    places = 8
    while places < count:
        places += max(places // 4, 1)
    return count if count <= 8 else places


def leaf_shapes(slots: int, c: int, f: int, g: int, v: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of every array of the leaves, by name.

    Args:
        slots: Leaves.
        c: Classes.
        f: Numeric columns.
        g: Nominal columns.
        v: Values of a nominal column.
    """
    return {
        "count": (slots, c),
        "gauss": (slots, 2, c, f),
        "moments": (slots, c, 4, f),
        "table": (slots, g, v, c),
        "logs": (slots, g, v, c),
        "base": (slots, c),
        "normaliser": (slots, c),
    }


class LeafStore:
    """Statistics of leaves, by slot.

    Attributes:
        count: Class weights [S, C].
        mean: Mean and -1 / (2 variance), 0 where unknown [S, 2, C, F].
        moments: Observed weight, sum of squared deviations, least, largest value [S, C, 4, F].
        table: Weight of nominal values [S, G, V, C]; logs: log of their shares, 0 where there is none.
        base: The part of the score that does not depend on the row [S, C].
        total: Weight of a leaf; tried_at: weight at the last attempt to split.
        majority_right, bayes_right: Weight of rows that each kind of prediction had right.
        best: Majority class, -1 if none.
        order: Classes in the order in which the leaf met them; observed: since it exists.
        active: Whether the leaf still observes values.
    """

    ARRAYS = ("count", "gauss", "moments", "table", "logs", "base", "normaliser")
    SCALARS = ("total", "tried_at", "majority_right", "bayes_right", "best", "active")

    def __init__(self) -> None:
        self.n_classes = self.n_numeric = self.n_nominal = self.n_values = 0
        self.count = np.zeros((0, 0))
        self.gauss = np.zeros((0, 2, 0, 0))
        self.moments = np.zeros((0, 0, 4, 0))
        self.table = np.zeros((0, 0, 0, 0))
        self.logs = np.zeros((0, 0, 0, 0))
        self.base = np.zeros((0, 0))
        self.normaliser = np.zeros((0, 0))
        self.total: list[float] = []
        self.tried_at: list[float] = []
        self.majority_right: list[float] = []
        self.bayes_right: list[float] = []
        self.best: list[int] = []
        self.active: list[bool] = []
        self.order: list[list[int]] = []
        self.observed: list[list[int]] = []
        self.free: list[int] = []
        self._buffer = np.zeros((0, 2, 0, 0))
        self._columns = self._cell_places = np.zeros(0, dtype=int)

    def resize(self, n_classes: int, n_numeric: int, n_nominal: int, n_values: int) -> None:
        """Make room for more classes, columns and values; everything keeps its place.

        `n_classes` and `n_values` become what there is room for, so that a stream in which classes or
        values keep coming does not copy everything for each of them.
        """
        shape = (room(n_classes), n_numeric, n_nominal, room(n_values))
        if shape != (self.n_classes, self.n_numeric, self.n_nominal, self.n_values):
            self.n_classes, self.n_numeric, self.n_nominal, self.n_values = shape
            self._allocate(len(self.count))
            n_cells = n_nominal * self.n_values
            self._columns = np.arange(0, n_cells, self.n_values) if n_cells else np.zeros(0, dtype=int)
            self._cell_places = np.arange(n_cells) * self.n_classes

    def _allocate(self, slots: int) -> None:
        c, f, g, v = self.n_classes, self.n_numeric, self.n_nominal, self.n_values
        shapes = leaf_shapes(slots, c, f, g, v)
        for name, shape in shapes.items():
            old = getattr(self, name)
            new = np.zeros(shape)
            if name == "moments":
                new[:, :, 2], new[:, :, 3] = np.inf, -np.inf
            elif name == "base":
                new[:] = -np.inf
            new[tuple(slice(size) for size in old.shape)] = old
            setattr(self, name, new)

    def new(self) -> int:
        """Return the slot of a new, empty leaf."""
        if self.free:
            slot = self.free.pop()
            self.order[slot] = []
            self.count[slot], self.base[slot] = 0.0, -np.inf
            self.forget(slot)
        else:
            slot = len(self.total)
            if slot >= len(self.count):
                self._allocate(max(8, int(_GROWTH * slot)))
            for name in self.SCALARS:
                getattr(self, name).append(0.0)
            self.order.append([])
            self.observed.append([])
        self.total[slot] = self.tried_at[slot] = 0.0
        self.majority_right[slot] = self.bayes_right[slot] = 0.0
        self.best[slot], self.active[slot] = -1, True
        return slot

    def forget(self, slot: int) -> None:
        """Drop what a leaf observed of the columns; class weights stay."""
        self.gauss[slot] = 0.0
        self.moments[slot, :, :2] = 0.0
        self.moments[slot, :, 2], self.moments[slot, :, 3] = np.inf, -np.inf
        self.table[slot] = self.logs[slot] = 0.0
        self.normaliser[slot] = 0.0
        self.observed[slot] = []
        if self.order[slot]:
            self._refresh_base(np.array([slot]))

    def exact_total(self, slot: int) -> float:
        """Return a leaf's weight, added up afresh in the order of its classes."""
        weights = self.count[slot].tolist()
        self.total[slot] = total = float(sum(weights[c] for c in self.order[slot]))
        return total

    def start_with(self, slot: int, weights: dict[int, float]) -> None:
        """Give a new leaf the class weights that a split leaves it, in the order in which ties are broken."""
        order = list(weights)
        self.count[slot, order] = list(weights.values())
        self.order[slot] = order
        self.tried_at[slot] = self.exact_total(slot)
        if order:
            self.best[slot] = max(order, key=weights.__getitem__)  # the first of equals
        self._refresh_base(np.array([slot]))

    def scores(self, slots: np.ndarray, row: Row) -> np.ndarray:
        """Return naive Bayes scores, log joint probabilities [len(slots), C]; -inf for unknown classes."""
        found = self.base.take(slots, axis=0)
        if self.n_numeric:
            shape = (len(slots), *self.gauss.shape[1:])
            if self._buffer.shape != shape:
                self._buffer = np.empty(shape)
            gathered = self._buffer
            self.gauss.take(slots, axis=0, out=gathered, mode="clip")
            squares = gathered[:, 0]
            if row.complete:
                np.subtract(squares, row.numbers, out=squares)
            else:
                present = ~np.isnan(row.numbers)
                known = gathered[:, 1] < 0
                logs = 0.5 * np.log(np.where(known, gathered[:, 1] / -np.pi, 1.0))
                found -= (logs * ~present).sum(axis=2)
                np.subtract(squares, np.where(present, row.numbers, 0.0), out=squares)
                squares *= present
            np.multiply(squares, squares, out=squares)
            found += np.maximum(np.einsum("ecf,ecf->ec", squares, gathered[:, 1]), _LOWEST)
        if self.n_nominal:
            places = self._cells(row)[:, None] + slots * (self.n_nominal * self.n_values)
            found += self.logs.reshape(-1, self.n_classes).take(places, axis=0).sum(axis=0)
        return found

    def _cells(self, row: Row) -> np.ndarray:
        """Return where a row's values stand among the values of all nominal columns, counted one by one."""
        codes = np.array(row.codes, dtype=np.intp)
        cells = codes + self._columns
        return cells if row.complete else cells[codes >= 0]

    def observe(
        self,
        slots: np.ndarray,
        row: Row,
        y: int,
        weights: np.ndarray | None,
        columns: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> None:
        """Add a row to the distributions of class `y` of some leaves; class weights are not touched.

        Args:
            slots: Leaves, each once [k].
            row: The row.
            y: Number of the class.
            weights: Weight of the row in each leaf [k]; None for 1.
            columns: Which numeric [k, F] and nominal [k, G] columns each leaf looks at; None for all.
        """
        w = _ONE if weights is None else weights[:, None]
        if self.n_numeric:
            self._observe_numbers(slots, row, y, w, None if columns is None else columns[0])
        if self.n_nominal:
            self._observe_values(slots, row, y, w, None if columns is None else columns[1])

    def _observe_numbers(
        self, slots: np.ndarray, row: Row, y: int, w: np.ndarray, columns: np.ndarray | None
    ) -> None:
        x, c = row.numbers, self.n_classes
        some = columns is not None or not row.complete
        if columns is not None:
            x = np.where(columns, x, np.nan)
        gauss, moments = self.gauss.reshape(-1, self.n_numeric), self.moments.reshape(-1, 4, self.n_numeric)
        first = slots * c
        at = first + y
        mean_at = first + at
        old_mean, new = gauss.take(mean_at, axis=0), moments.take(at, axis=0)
        old = new.copy() if some else None
        n, squares, low, high = new[:, 0], new[:, 1], new[:, 2], new[:, 3]
        n += w
        delta = x - old_mean
        mean = w / n
        mean *= delta
        mean += old_mean
        delta *= w
        delta *= x - mean
        squares += delta
        np.minimum(low, x, out=low)
        np.maximum(high, x, out=high)
        if old is not None:
            here = ~np.isnan(x)
            mean = np.where(here, mean, old_mean)
            np.copyto(new, old, where=~here if here.ndim == 1 else ~here[:, None])
        precision = _ONE - n
        precision *= 0.5
        known = (squares > _ZERO) & (n > _ONE)
        if np.count_nonzero(known) == known.size:
            precision /= squares
            logs = precision * _OVER_PI
        else:
            precision = np.divide(precision, squares, out=np.zeros(n.shape), where=known)
            logs = precision * _OVER_PI + ~known
        gauss[mean_at] = mean
        gauss[mean_at + c] = precision
        moments[at] = new
        np.log(logs, out=logs)
        self.normaliser.reshape(-1)[at] = 0.5 * np.add.reduce(logs, axis=1)

    def _observe_values(
        self, slots: np.ndarray, row: Row, y: int, w: np.ndarray, columns: np.ndarray | None
    ) -> None:
        n_cells, c = self.n_nominal * self.n_values, self.n_classes
        first = (slots * (n_cells * c) + y)[:, None]
        table = self.table.reshape(-1)
        if columns is None:
            table[first + self._cells(row) * c] += w
        else:
            codes = np.array(row.codes)
            table[first + (np.maximum(codes, 0) + self._columns) * c] += w * (columns & (codes >= 0))
        places = first + self._cell_places
        own = table.take(places).reshape(len(slots), self.n_nominal, self.n_values)
        whole = np.add.reduce(own, axis=2, keepdims=True)
        share = np.divide(own, whole, out=np.ones(own.shape), where=own > _ZERO)
        self.logs.reshape(-1)[places] = np.log(share, out=share).reshape(places.shape)

    def add(self, slots: list[int], y: int, weights: list[float]) -> None:
        """Add a row of class `y` to the class weights of some leaves [k] and refresh their scores."""
        count = self.count
        for slot, weight in zip(slots, weights, strict=True):
            self.total[slot] += weight
            count[slot, y] += weight
            order, best = self.order[slot], self.best[slot]
            if y not in order:
                order.append(y)
            if best < 0:
                self.best[slot] = y
            elif y != best:
                own, other = count[slot, y], count[slot, best]
                if own > other or (own == other and order.index(y) < order.index(best)):
                    self.best[slot] = y
        self._refresh_base(np.array(slots))

    def _refresh_base(self, slots: np.ndarray) -> None:
        count = self.count.take(slots, axis=0)
        total = np.add.reduce(count, axis=1, keepdims=True)
        n_positive = np.count_nonzero(count)
        if n_positive == count.size:
            base = np.log(count / total)
            base += self.normaliser.take(slots, axis=0)
            self.base[slots] = base
            return
        positive = count > 0
        prior = np.log(np.divide(count, total, out=np.ones_like(count), where=positive))
        base = np.where(positive, prior + self.normaliser.take(slots, axis=0), -np.inf)
        if n_positive < sum(len(self.order[slot]) for slot in slots.tolist()):
            for place, slot in enumerate(slots.tolist()):
                for c in self.order[slot]:  # a class that a split left without weight votes with log 1
                    if not positive[place, c]:
                        base[place, c] = 0.0
        self.base[slots] = base
