r"""Voices that answer with numbers: regression trees, networks and nearest rows, weighted by recent errors.

All voices see the scaled inputs of `moe_adapt.drift.parts.inputs` and answer in deviations of the target from
its running mean. A voice with the decayed mean squared error \(m_v\) has the weight \(m_v^{-2}\), and so
has each tree in the committee of trees. A tree (River's, with linear models in its leaves) looks at a random
60 % of the inputs and learns every row with a weight drawn from Poisson(6). It begins anew when the watch
finds that its error has risen; errors enter the watch as \(|e| / (1 + |e|)\), which its bound needs.
"""

from typing import Any

import numpy as np
from river.tree import HoeffdingTreeRegressor

from moe_adapt.drift.committee.layers import Layers
from moe_adapt.drift.committee.neighbours import NEAR, nearest
from moe_adapt.drift.committee.reliability import DECAY
from moe_adapt.drift.committee.trees import LEAST_COLUMNS, SHARE, WATCH_DELTA
from moe_adapt.drift.committee.voices import STEP_EVERY
from moe_adapt.drift.parts.watch import error_watch

__all__ = ["VOICES", "NearestMean", "OnlineNetwork", "RecentErrors", "RegressionTrees", "make_voice"]

VOICES = ("trees", "mlp", "linear", "neighbours")
#: Rows that the nearest ones are among.
LAST = 500
_POWER = 2
_FLOOR = 1e-6
_NETWORKS: dict[str, tuple[tuple[int, ...], float]] = {"mlp": ((128, 64), 5e-3), "linear": ((), 1e-2)}


class RecentErrors:
    """Decayed sums of squared errors and of rows.

    Args:
        count: How many voices.

    Attributes:
        sums: Squared errors and rows [2, count].
    """

    def __init__(self, count: int) -> None:
        self.sums = np.ones((2, count))

    @property
    def shares(self) -> np.ndarray:
        """Weights of the voices, adding up to 1 [count]."""
        found = (self.sums[0] / self.sums[1] + _FLOOR) ** -_POWER
        return found / found.sum()

    def update(self, errors: np.ndarray, w: float) -> None:
        """Count the errors [count] of a row of weight `w`."""
        self.sums *= DECAY
        self.sums[0] += w * errors * errors
        self.sums[1] += w

    def forget(self, voice: int) -> None:
        """Start afresh with one voice."""
        self.sums[:, voice] = 1.0


class RegressionTrees:
    """A committee of trees.

    Args:
        count: How many.
        detector: As `DriftMoERegressor` takes it.
        poisson: Mean of the weights; 0 for weight 1.
        rng: Where weights and columns are drawn from.
    """

    def __init__(self, count: int, detector: Any, poisson: float, rng: np.random.Generator) -> None:
        self.poisson, self.rng = poisson, rng
        self.watching = bool(detector)
        self.watch: Any = error_watch(detector, count, WATCH_DELTA)
        self.errors = RecentErrors(count)
        self.trees = [_tree() for _ in range(count)]
        self.columns: list[list[int]] = [[] for _ in range(count)]
        self.n_inputs = self.replaced = 0

    def fit(self, n_inputs: int) -> None:
        """Let trees draw some of the new inputs."""
        fresh = range(self.n_inputs, n_inputs)
        self.n_inputs = n_inputs
        for tree, columns in enumerate(self.columns):
            columns += [place for place in fresh if self.rng.random() < SHARE]
            if len(columns) < LEAST_COLUMNS:
                self._draw(tree)

    def _draw(self, tree: int) -> None:
        most = max(LEAST_COLUMNS, int(np.ceil(SHARE * self.n_inputs)))
        self.columns[tree] = sorted(self.rng.permutation(self.n_inputs)[:most].tolist())

    def answer(self, vector: np.ndarray) -> float:
        """Return the committee's answer for inputs [inputs]."""
        self._rows = [{place: float(vector[place]) for place in columns} for columns in self.columns]
        self._said = np.array(
            [float(tree.predict_one(row)) for tree, row in zip(self.trees, self._rows, strict=True)]
        )
        self._said[~np.isfinite(self._said)] = 0.0
        return float(self.errors.shares @ self._said)

    def learn(self, vector: np.ndarray, target: float, w: float) -> None:
        """Learn the row that was asked about last."""
        draws = self.rng.poisson(self.poisson, len(self.trees)) if self.poisson else [1] * len(self.trees)
        for tree, row, draw in zip(self.trees, self._rows, draws, strict=True):
            if draw:
                tree.learn_one(row, target, w=float(w * draw))
        errors = self._said - target
        self.errors.update(errors, w)
        for tree in self.watch.update(np.abs(errors) / (1.0 + np.abs(errors))) if self.watching else []:
            self.trees[tree] = _tree()
            self._draw(tree)
            self.errors.forget(tree)
            self.watch.forget(tree)
            self.replaced += 1


def _tree() -> HoeffdingTreeRegressor:
    return HoeffdingTreeRegressor(grace_period=50, delta=0.05, tau=0.05)


class OnlineNetwork:
    """A network that takes a step every few rows.

    Args:
        name: ``mlp`` or ``linear``.
        rng: Where weights are drawn from.
    """

    def __init__(self, name: str, rng: np.random.Generator) -> None:
        hidden, lr = _NETWORKS[name]
        self.layers = Layers(hidden, lr, "squares", rng)
        self.waiting: list[tuple[np.ndarray, float, float]] = []

    def fit(self, n_inputs: int) -> None:
        """Make room for more inputs."""
        self.layers.grow(n_inputs, 1)
        self.waiting = [(np.pad(x, (0, n_inputs - len(x))), y, w) for x, y, w in self.waiting]

    def answer(self, vector: np.ndarray) -> float:
        """Return the answer for inputs [inputs]."""
        return float(self.layers.forward(vector)[0])

    def learn(self, vector: np.ndarray, target: float, w: float) -> None:
        """Learn a row."""
        self.waiting.append((vector, target, w))
        if len(self.waiting) == STEP_EVERY:
            x, targets, weights = (np.array(part) for part in zip(*self.waiting, strict=True))
            self.layers.step(x, targets[:, None], weights)
            self.waiting.clear()


class NearestMean:
    """The mean of the nearest of the last `LAST` rows, weighted by weight and 1 / (distance + 0.001)."""

    def __init__(self) -> None:
        self.rows, self.targets, self.weights = np.zeros((0, LAST)), np.zeros(LAST), np.zeros(LAST)
        self.seen = 0

    def fit(self, n_inputs: int) -> None:
        """Make room for more inputs; rows that did not have them are given 0, the mean."""
        self.rows = np.concatenate([self.rows, np.zeros((n_inputs - len(self.rows), LAST))])

    def answer(self, vector: np.ndarray) -> float:
        """Return the answer for inputs [inputs], 0 before the first row."""
        count = min(self.seen, LAST)
        if not count:
            return 0.0
        gaps = self.rows[:, :count] - vector[:, None]
        gaps *= gaps
        squares = gaps.sum(axis=0)
        near = nearest(squares)
        weights = self.weights[near] / (np.sqrt(squares[near]) + NEAR)
        return float(weights @ self.targets[near] / weights.sum())

    def learn(self, vector: np.ndarray, target: float, w: float) -> None:
        """Keep a row in the place of the oldest."""
        place = self.seen % LAST
        self.rows[:, place], self.targets[place], self.weights[place] = vector, target, w
        self.seen += 1


def make_voice(name: str, options: Any, rng: np.random.Generator) -> Any:
    """Return a voice of `VOICES` for the settings of a regressor."""
    if name == "trees":
        return RegressionTrees(options.n_experts, options.detector, options.poisson, rng)
    return NearestMean() if name == "neighbours" else OnlineNetwork(name, rng)
