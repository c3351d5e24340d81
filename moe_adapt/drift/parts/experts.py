"""DriftMoE's experts: trees in one pool of arrays, or any River classifiers.

Both kinds answer with a matrix of probabilities, one row per expert, learn a row with some of the experts,
and replace an expert by a fresh one.
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from river import base

from moe_adapt.drift.hoeffding.encoding import FeatureTable, Row, present
from moe_adapt.drift.hoeffding.forest import FastHoeffdingTreePool, Reading
from moe_adapt.drift.hoeffding.growth import TreeOptions
from moe_adapt.drift.hoeffding.labels import LabelTable

__all__ = ["Answers", "PoolExperts", "RiverExperts", "known_proba", "many_classes"]


@dataclass(slots=True)
class Answers:
    """What the experts say about a row.

    Attributes:
        proba: Probabilities [E, C]; an expert that knows nothing answers uniformly.
        reading: What the pool remembers of the row; None for River experts.
    """

    proba: np.ndarray
    reading: Reading | None


def _uniform_where_empty(proba: np.ndarray) -> None:
    empty = proba.sum(axis=1) <= 0
    if empty.any():
        proba[empty] = 1.0 / proba.shape[1]


class PoolExperts:
    """Experts that are the trees of a pool.

    Args:
        n_experts: How many.
        options: Of the trees.
    """

    def __init__(self, n_experts: int, options: TreeOptions) -> None:
        self.pool = FastHoeffdingTreePool(n_experts, options)

    def fit(self, features: FeatureTable, labels: LabelTable) -> None:
        """Make room for new columns, values and classes."""
        self.pool.fit(features, labels)

    def plant(self, pool: FastHoeffdingTreePool) -> None:
        """Take over the trees of a pool."""
        self.pool = pool

    def add(self) -> None:
        """Add an expert."""
        self.pool.add_tree()

    def read(self, row: Row, x: Mapping[Hashable, Any], labels: LabelTable) -> Answers:
        """Return the experts' answers."""
        reading = self.pool.read(row)
        if not reading.certain:
            _uniform_where_empty(reading.proba)
        return Answers(reading.proba, reading)

    def learn(
        self,
        row: Row,
        x: Mapping[Hashable, Any],
        y: int,
        label: Hashable,
        answers: Answers,
        experts: list[int],
        weights: list[float] | None,
    ) -> None:
        """Let experts learn a row of class number `y`."""
        assert answers.reading is not None
        self.pool.learn(row, y, answers.reading, experts, weights)

    def reset(self, expert: int) -> None:
        """Put an empty tree in the place of an expert."""
        self.pool.reset(expert)

    def swap(self, one: int, other: int) -> None:
        """Let two experts change places."""
        self.pool.swap(one, other)


def many_classes(prototype: base.Classifier) -> base.Classifier:
    """Return a classifier for any number of classes: one that knows two is asked for one against the rest."""
    if prototype._multiclass:
        return prototype
    from river.multiclass import OneVsRestClassifier

    return OneVsRestClassifier(prototype)


def known_proba(model: base.Classifier, x: Mapping[Hashable, Any], labels: LabelTable) -> np.ndarray:
    """Return what a River classifier says about the labels that were learned [C]; others are left out."""
    found = np.zeros(len(labels))
    for label, value in model.predict_proba_one(present(x)).items():  # type: ignore[arg-type]
        number = labels.number.get(label)
        if number is not None and value == value:
            found[number] = value
    return found


class RiverExperts:
    """Experts that are River classifiers.

    Args:
        n_experts: How many.
        prototype: What they are clones of.
        rng: Gives each expert its seed, if the prototype has one.
    """

    def __init__(self, n_experts: int, prototype: base.Classifier, rng: np.random.Generator) -> None:
        self.prototype, self.rng = many_classes(prototype), rng
        self.models = [self._fresh() for _ in range(n_experts)]

    def _fresh(self) -> base.Classifier:
        if "seed" in self.prototype._get_params():
            return self.prototype.clone({"seed": int(self.rng.integers(2**31))})
        return self.prototype.clone()

    def fit(self, features: FeatureTable, labels: LabelTable) -> None:
        """Do nothing: River classifiers grow by themselves."""

    def add(self) -> None:
        """Add an expert."""
        self.models.append(self._fresh())

    def read(self, row: Row, x: Mapping[Hashable, Any], labels: LabelTable) -> Answers:
        """Return the experts' answers."""
        proba = np.zeros((len(self.models), len(labels)))
        for expert, model in enumerate(self.models):
            proba[expert] = known_proba(model, x, labels)
        total = proba.sum(axis=1, keepdims=True)
        proba /= np.where(total > 0, total, 1.0)
        _uniform_where_empty(proba)
        return Answers(proba, None)

    def learn(
        self,
        row: Row,
        x: Mapping[Hashable, Any],
        y: int,
        label: Hashable,
        answers: Answers,
        experts: list[int],
        weights: list[float] | None,
    ) -> None:
        """Let experts learn a row; a whole weight is learned that many times, as River's ensembles do."""
        x = present(x)
        for place, expert in enumerate(experts):
            for _ in range(1 if weights is None else round(weights[place])):
                self.models[expert].learn_one(x, label)  # type: ignore[arg-type]

    def reset(self, expert: int) -> None:
        """Put a fresh classifier in the place of an expert."""
        self.models[expert] = self._fresh()

    def swap(self, one: int, other: int) -> None:
        """Let two experts change places."""
        self.models[one], self.models[other] = self.models[other], self.models[one]
