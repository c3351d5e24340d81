"""The state and the steps of DriftMoE, on arrays; the classifier is River's view of it.

A prediction is kept with its row, so that learning the same row next does not compute it again:
test-then-train costs one pass through router and experts.
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_adapt.drift.driftmoe.buffer import RowBuffer
from moe_adapt.drift.driftmoe.network import OnlineNetwork, softmax
from moe_adapt.drift.hoeffding.encoding import FeatureTable, Row
from moe_adapt.drift.hoeffding.growth import TreeOptions
from moe_adapt.drift.hoeffding.labels import LabelTable
from moe_adapt.drift.parts.experts import Answers, PoolExperts, RiverExperts
from moe_adapt.drift.parts.inputs import NetworkInputs
from moe_adapt.drift.parts.watch import MOST_DRIFTS, error_watch

if TYPE_CHECKING:
    from moe_adapt.drift.driftmoe.classifier import DriftMoEClassifier

__all__ = ["Engine", "Seen"]

#: Rows after which the reserve tree starts afresh, and the least that it must have seen to take over.
_RESERVE_ROWS, _RESERVE_LEAST = 1000, 50
#: Rows per step of the neural expert.
_NEURAL_EVERY = 8


@dataclass(slots=True)
class Seen:
    """A row and what was made of it before its label was known."""

    x: Mapping[Hashable, Any]
    copy: dict[Hashable, Any]
    row: Row
    raw: np.ndarray
    vector: np.ndarray
    logits: np.ndarray
    answers: Answers
    proba: np.ndarray


class Engine:
    """Router, experts and what they have seen.

    Args:
        options: The classifier, for its settings.
    """

    def __init__(self, options: "DriftMoEClassifier") -> None:
        self.options = options
        self.rng = np.random.default_rng(options.seed)
        self.task = options.mode == "task"
        self.features = FeatureTable(options.nominal_attributes or (), canonical=True)
        self.labels = LabelTable()
        self.inputs = NetworkInputs(options.scale_inputs)
        self.n_trees = 0 if self.task else options.n_experts
        self.reserve = bool(options.detector) and not self.task
        self.trees = self._trees(self.n_trees + self.reserve)
        self.router = OnlineNetwork(options.hidden, options.dropout, options.lr, "bce", self.rng)
        self.buffer = RowBuffer()
        self.neural = OnlineNetwork(64, 0.0, 5e-3, "softmax", self.rng) if options.neural else None
        self.neural_buffer = RowBuffer()
        self.watch: Any = error_watch(options.detector, self.n_trees)
        self.learned = [0] * (self.n_trees + self.reserve)
        self.chosen = np.zeros(self.n_experts, dtype=np.int64)
        self.events = {"rows": 0, "router_steps": 0, "replaced": 0}
        self.weight = 1.0
        self.drifts: list[tuple[int, int]] = []
        self._seen: Seen | None = None

    @property
    def n_experts(self) -> int:
        """Experts that answer: the trees, and the neural one if there is one."""
        return self.n_trees if self.task else self.n_trees + self.options.neural

    @property
    def expert_labels(self) -> LabelTable:
        """The labels that the trees know."""
        return self.labels

    def _trees(self, count: int) -> PoolExperts | RiverExperts:
        options = self.options
        if options.expert is None and options.backend != "river":
            trees = TreeOptions(grace_period=50)
            return PoolExperts(max(count, 1), trees)
        expert = options.expert
        if expert is None:
            from river.tree import HoeffdingTreeClassifier

            nominal = list(options.nominal_attributes or ()) or None
            expert = HoeffdingTreeClassifier(
                grace_period=50, max_share_to_split=1.0, nominal_attributes=nominal
            )
        return RiverExperts(max(count, 1), expert, self.rng)

    # --- predicting --------------------------------------------------------------------------------------

    def predict(self, x: Mapping[Hashable, Any]) -> np.ndarray:
        """Return the probability of every class [C]; nothing is learned."""
        if not len(self.labels):
            return np.zeros(0)
        return self._look(x, self.features.read(x)).proba

    def _look(self, x: Mapping[Hashable, Any], row: Row) -> Seen:
        raw = self.inputs.raw(row)
        vector = self.inputs.vector(raw)
        logits = self.router.forward(vector)
        answers = self.trees.read(row, x, self.expert_labels)
        if self.neural is None:
            proba = answers.proba[: self.n_trees]
        else:
            proba = np.empty((self.n_trees + 1, len(self.labels)))
            proba[:-1] = answers.proba[: self.n_trees]
            proba[-1] = softmax(self.neural.forward(vector))
        answers.proba = proba
        self._seen = Seen(x, dict(x), row, raw, vector, logits, answers, self._combine(logits, proba))
        return self._seen

    def _combine(self, logits: np.ndarray, proba: np.ndarray) -> np.ndarray:
        if self.options.combine == "top1":
            return proba[logits.argmax()]
        weights = softmax(logits / self.options.temperature)
        found = weights.astype(np.float64).dot(proba)
        found /= np.add.reduce(found)
        return found

    def answer(self, x: Mapping[Hashable, Any]) -> Hashable | None:
        """Return the most probable label, None before any was learned."""
        return self.labels.best(self.predict(x))

    # --- learning ----------------------------------------------------------------------------------------

    def learn(self, x: Mapping[Hashable, Any], label: Hashable, w: float = 1.0) -> None:
        """Learn a row of weight `w` > 0."""
        seen = self._seen
        self.labels.check(label)
        known = label in self.labels.number
        self.weight = w
        if not (known and seen is not None and self.features.covers(x, seen.row) and seen.copy == x):
            row = self.features.learn(x)
            self.labels.learn(label)
            self._fit()
            seen = self._look(x, row)
        self._seen = None
        y = self.labels.number[label]
        right = self._step(seen, y, label)
        if self.neural is not None:
            target = np.zeros(len(self.labels), dtype=np.float32)
            target[y] = 1.0
            self.neural_buffer.add(seen.vector, target)
            if len(self.neural_buffer) >= _NEURAL_EVERY:
                self.neural.step(*self.neural_buffer.take())
        if self.options.detector:
            alarmed = self.watch.update(~right[: self.n_trees])
            self.drifts += [(self.events["rows"], expert) for expert in alarmed]
            del self.drifts[:-MOST_DRIFTS]
            self._replace(alarmed)
        self.inputs.update(seen.raw)
        self.events["rows"] += 1

    def _step(self, seen: Seen, y: int, label: Hashable) -> np.ndarray:
        """Let router and experts learn a row; return which experts were right."""
        proba = seen.answers.proba
        right = proba.argmax(axis=1) == y
        mask = right.astype(np.float32)
        if not np.count_nonzero(right):
            mask[proba[:, y].argmax()] = 1.0
        self.chosen[seen.logits.argmax()] += 1
        self._train_router(seen.vector, mask)
        experts, weights = self._weighted(self._learners(seen.logits, mask, proba[:, y]))
        if self.reserve:
            experts.append(self.n_trees)
            if weights is not None:
                weights.append(self.weight)
        self.trees.learn(seen.row, seen.x, y, label, seen.answers, experts, weights)
        for expert in experts:
            self.learned[expert] += 1
        return right

    def _train_router(self, vector: np.ndarray, mask: np.ndarray) -> None:
        self.buffer.add(vector, mask)
        if len(self.buffer) >= self.options.update_every:
            self.router.step(*self.buffer.take())
            self.events["router_steps"] += 1

    def _weighted(self, experts: list[int]) -> tuple[list[int], list[float] | None]:
        """Draw the weight with which each expert learns a row; those that draw 0 do not."""
        w = self.weight
        if not self.options.poisson:
            return experts, None if w == 1 else [w] * len(experts)
        draws = self.rng.poisson(self.options.poisson, len(experts)).tolist()
        return [e for e, draw in zip(experts, draws, strict=True) if draw], [w * d for d in draws if d]

    def _learners(self, logits: np.ndarray, mask: np.ndarray, given: np.ndarray) -> list[int]:
        count = self.n_trees
        if self.options.train_rule == "all":
            return list(range(count))
        # lists: a dozen numbers are sorted faster than numpy is called
        order = sorted(range(count), key=logits.tolist().__getitem__, reverse=True)
        chosen = set(order[: self.options.top_k])
        if self.options.train_rule == "routed_or_responsible":
            right, sure = mask.tolist(), given.tolist()
            chosen.add(max(range(count), key=lambda e: sure[e] if right[e] else -1.0))
        if self.options.warmup_rows:
            least = self.options.warmup_rows
            chosen.update([expert for expert in range(count) if self.learned[expert] < least])
        return sorted(chosen)

    def _replace(self, alarmed: list[int]) -> None:
        for expert in alarmed:
            reserve = self.n_trees
            if self.learned[reserve] >= _RESERVE_LEAST:
                self.trees.swap(expert, reserve)
                self.learned[expert] = self.learned[reserve]
            else:
                self.learned[expert] = 0
                self.trees.reset(expert)
            self._fresh_reserve(bool(self.learned[expert]))
            self.watch.forget(expert)
            self.events["replaced"] += 1
        if self.learned[self.n_trees] >= _RESERVE_ROWS:
            self._fresh_reserve(True)

    def _fresh_reserve(self, used: bool) -> None:
        if used:
            self.trees.reset(self.n_trees)
            self.learned[self.n_trees] = 0

    def _fit(self) -> None:
        self.trees.fit(self.features, self.expert_labels)
        self.inputs.fit(self.features)
        self.router.grow(self.inputs.n_inputs, self.n_experts)
        self.buffer.fit(self.inputs.n_inputs, self.n_experts)
        if self.neural is not None:
            self.neural.grow(self.inputs.n_inputs, len(self.labels))
            self.neural_buffer.fit(self.inputs.n_inputs, len(self.labels))

    def last_seen(self) -> Seen:
        """Return what was made of the row that was looked at last."""
        assert self._seen is not None
        return self._seen

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_seen": None}
