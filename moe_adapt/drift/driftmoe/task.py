r"""DriftMoE's task mode: expert \(c\) is a binary tree that tells class \(c\) from all others.

Every tree learns every row. The router learns which binary answers are right; the answer is
\(\arg\max_c \sigma(z_c) P_c(1 \mid x)\), averaged with the small network where there is one. In the
released rule the mask is the one-hot label whatever the trees say, and the answer is the router's alone:
`task_rule="released"`, here without dropout in predictions.
"""

from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from moe_adapt.drift.driftmoe.engine import Engine, Seen
from moe_adapt.drift.driftmoe.network import softmax
from moe_adapt.drift.hoeffding.encoding import Row
from moe_adapt.drift.hoeffding.labels import LabelTable

if TYPE_CHECKING:
    from moe_adapt.drift.driftmoe.classifier import DriftMoEClassifier

__all__ = ["TaskEngine"]


class TaskEngine(Engine):
    """One expert per class.

    Args:
        options: The classifier, for its settings.
    """

    def __init__(self, options: "DriftMoEClassifier") -> None:
        super().__init__(options)
        self.sides = LabelTable()
        for side in (False, True):
            self.sides.learn(side)

    def _fit(self) -> None:
        while self.n_trees < len(self.labels):
            if self.n_trees:
                self.trees.add()
            self.n_trees += 1
            self.watch.add()
            self.learned.append(0)
            self.chosen = np.append(self.chosen, 0)
        super()._fit()

    @property
    def expert_labels(self) -> LabelTable:
        """What the trees tell apart."""
        return self.sides

    def _look(self, x: Mapping[Hashable, object], row: Row) -> Seen:
        raw = self.inputs.raw(row)
        vector = self.inputs.vector(raw)
        logits = self.router.forward(vector)
        answers = self.trees.read(row, x, self.sides)
        if self.options.task_rule == "released":
            proba = softmax(logits)
        else:
            proba = answers.proba[:, 1] / (1.0 + np.exp(-np.clip(logits, -60, 60)))
            total = proba.sum()
            proba = proba / total if total > 0 else np.full(len(proba), 1.0 / len(proba))
            if self.neural is not None:
                proba = 0.5 * (proba + softmax(self.neural.forward(vector)))
        proba = proba.astype(np.float64)
        self._seen = Seen(x, dict(x), row, raw, vector, logits, answers, proba / proba.sum())
        return self._seen

    def _step(self, seen: Seen, y: int, label: Hashable) -> np.ndarray:
        said = seen.answers.proba[:, 1] > seen.answers.proba[:, 0]
        right = said == (np.arange(self.n_trees) == y)
        if self.options.task_rule == "released":
            mask = np.zeros(self.n_trees, dtype=np.float32)
            mask[y] = 1.0
        else:
            mask = right.astype(np.float32)
        self.chosen[seen.proba.argmax()] += 1
        self._train_router(seen.vector, mask)
        others = [c for c in range(self.n_trees) if c != y]
        for side, experts in ((1, [y]), (0, others)):
            experts, weights = self._weighted(experts)
            self.trees.learn(seen.row, seen.x, side, bool(side), seen.answers, experts, weights)
        self.learned = [rows + 1 for rows in self.learned]
        return right

    def _replace(self, alarmed: list[int]) -> None:
        for expert in alarmed:
            self.trees.reset(expert)
            self.watch.forget(expert)
            self.events["replaced"] += 1
