r"""The committee: diverse experts that all learn every row, and vote with one voice.

Each tree looks at a random 60 % of the columns (two at least), which it draws when it is new, and learns
every row with a weight drawn from Poisson(6). Its word counts by its odds
(`moe_adapt.drift.committee.reliability`); the voice of the committee is \(\sum_e \text{odds}_e\, p_e\),
normalised. When the watch finds that a tree's error has risen, an empty tree with other columns takes its
place. A tree keeps its columns when new ones appear, and takes each of those with a chance of 60 %.
"""

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np

from moe_adapt.drift.committee.reliability import Reliability
from moe_adapt.drift.hoeffding.encoding import FeatureTable, Row
from moe_adapt.drift.hoeffding.labels import LabelTable
from moe_adapt.drift.parts.experts import Answers, PoolExperts, RiverExperts
from moe_adapt.drift.parts.watch import error_watch

__all__ = ["LEAST_COLUMNS", "SHARE", "WATCH_DELTA", "Trees"]

#: Rows whose Poisson weights are drawn at once.
_BLOCK = 64
SHARE, LEAST_COLUMNS = 0.6, 2
WATCH_DELTA = 0.01


class Trees:
    """Experts with weights, columns and a watch of their own.

    Args:
        experts: Trees of a pool or classifiers of River.
        count: How many.
        detector: As `DriftMoEClassifier` takes it.
        poisson: Mean of the weights; 0 for weight 1.
        rng: Where weights and columns are drawn from.

    Attributes:
        numeric: Which numeric columns each tree looks at [E, F].
        nominal: Which nominal columns [E, G].
        draws: Weights of the next rows [block, E], from `cursor` on.
    """

    def __init__(
        self,
        experts: PoolExperts | RiverExperts,
        count: int,
        detector: Any,
        poisson: float,
        rng: np.random.Generator,
    ) -> None:
        self.experts: Any = experts
        self.count, self.poisson, self.rng = count, poisson, rng
        self.watching = bool(detector)
        self.watch: Any = error_watch(detector, count, WATCH_DELTA)
        self.reliability = Reliability(count)
        self.numeric = np.zeros((count, 0), dtype=bool)
        self.nominal = np.zeros((count, 0), dtype=bool)
        self.draws = np.zeros((0, count))
        self.cursor = 0

    def fit(self, features: FeatureTable, labels: LabelTable) -> None:
        """Make room for new columns, values and classes."""
        self.experts.fit(features, labels)
        known = self.numeric.shape[1] + self.nominal.shape[1]
        more = len(features.numeric) - self.numeric.shape[1], len(features.nominal) - self.nominal.shape[1]
        if not any(more):
            return
        fresh = [self.rng.random((self.count, added)) < SHARE for added in more]
        self.numeric, self.nominal = (
            np.concatenate(pair, axis=1) for pair in zip((self.numeric, self.nominal), fresh, strict=True)
        )
        for tree in range(self.count):
            if not known or self.numeric[tree].sum() + self.nominal[tree].sum() < LEAST_COLUMNS:
                self.draw_columns(tree)

    def draw_columns(self, tree: int) -> None:
        """Give a tree other columns."""
        width = self.numeric.shape[1]
        total = width + self.nominal.shape[1]
        taken = np.zeros(total, dtype=bool)
        taken[self.rng.permutation(total)[: max(LEAST_COLUMNS, int(np.ceil(SHARE * total)))]] = True
        self.numeric[tree], self.nominal[tree] = taken[:width], taken[width:]

    def read(
        self, row: Row, x: Mapping[Hashable, Any], labels: LabelTable
    ) -> tuple[Answers, np.ndarray, np.ndarray]:
        """Return the trees' answers, the committee's probabilities [C] and the trees' odds [E]."""
        answers = self.experts.read(row, x, labels)
        odds = self.reliability.odds
        voice = odds @ answers.proba
        return answers, voice / voice.sum(), odds

    def next_draws(self) -> np.ndarray:
        """Return the weights with which the trees learn the next row [E]."""
        if not self.poisson:
            return np.ones(self.count)
        if self.cursor >= len(self.draws):
            self.draws = self.rng.poisson(self.poisson, (_BLOCK, self.count)).astype(np.float64)
            self.cursor = 0
        self.cursor += 1
        return self.draws[self.cursor - 1]

    def learn(
        self, row: Row, x: Mapping[Hashable, Any], y: int, label: Hashable, answers: Answers, w: float
    ) -> list[int]:
        """Learn a row of class number `y`; return the trees that were replaced."""
        right = answers.proba.argmax(axis=1) == y
        weights = (w * self.next_draws()).tolist()
        chosen = [tree for tree, weight in enumerate(weights) if weight > 0]
        own = [weights[tree] for tree in chosen]
        if isinstance(self.experts, PoolExperts):
            assert answers.reading is not None
            columns = self.numeric, self.nominal
            self.experts.pool.learn(row, y, answers.reading, chosen, own, columns)
        else:
            self.experts.learn(row, x, y, label, answers, chosen, own)
        self.reliability.update(right, w)
        alarmed = self.watch.update(~right) if self.watching else []
        for tree in alarmed:
            self.experts.reset(tree)
            self.renew(tree)
        return alarmed

    def renew(self, tree: int) -> None:
        """Forget what is known about a tree that was replaced."""
        self.draw_columns(tree)
        self.reliability.forget(tree)
        self.watch.forget(tree)
