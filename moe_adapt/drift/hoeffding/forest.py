r"""A pool of Hoeffding trees in flat arrays: all trees read a row at once, any of them learn it.

Predictions are adaptive naive Bayes: in each leaf the better, so far, of naive Bayes and majority.

Split for split this is River's `HoeffdingTreeClassifier` (tests), several times faster because the arithmetic
of all trees is done together. Kept are also its quirks: a column alone with a finite gain is split on at
once, equal gains go to the last column. Not kept: (1) `max_share_to_split` is 1.0 by default; River's 0.99
makes nearly pure leaves forget all they observed at every attempt; (2) instead of a limit in bytes that is
checked every million rows, `max_leaves` stops a tree's growth; (3) a nominal column with one value is never
split on; (4) of a nominal column the first thousand values are told apart.

Reference: Domingos and Hulten, KDD 2000; Gama et al., Accurate Decision Trees for Mining High-Speed Data
Streams, KDD 2003.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from moe_adapt.drift.hoeffding.encoding import FeatureTable, Row
from moe_adapt.drift.hoeffding.growth import GrowingTrees, TreeOptions
from moe_adapt.drift.hoeffding.labels import LabelTable
from moe_adapt.drift.hoeffding.nodes import LEAF
from moe_adapt.errors import UserError

__all__ = ["FastHoeffdingTreePool", "Reading"]


@dataclass(slots=True)
class Reading:
    """What the trees make of a row before they learn it; stale once any tree has learned.

    Attributes:
        leaves: Node of the leaf in each tree [E].
        slots: Their slots [E].
        regular: Whether the row reached each leaf by tests alone, without a missing or unknown value [E].
        scores: Naive Bayes log scores [E, C].
        top: The best of a tree's scores [E, 1].
        proba: Probabilities [E, C]; all zero in a tree whose leaf is empty.
        certain: Whether every leaf has seen something, so that no row of `proba` is zero.
    """

    leaves: list[int]
    slots: list[int]
    regular: list[bool]
    scores: np.ndarray
    top: np.ndarray
    proba: np.ndarray
    certain: bool


class FastHoeffdingTreePool(GrowingTrees):
    """Hoeffding trees that share their arrays.

    Args:
        n_trees: How many.
        options: What they share.
    """

    def __init__(self, n_trees: int, options: TreeOptions | None = None) -> None:
        if n_trees < 1:
            raise UserError(f"a pool has at least one tree, got {n_trees}.")
        super().__init__(options or TreeOptions())
        self.n_leaves = [0] * n_trees
        self.gains = [{} for _ in range(n_trees)]
        self.root = [self._new_leaf(tree, 0) for tree in range(n_trees)]

    @property
    def n_trees(self) -> int:
        """How many trees there are."""
        return len(self.root)

    def fit(self, features: FeatureTable, labels: LabelTable) -> None:
        """Make room for the columns, values and classes that these tables hold by now."""
        self.store.resize(len(labels), len(features.numeric), len(features.nominal), features.n_values)
        self.labels, self.values = labels, features.values

    def read(self, row: Row) -> Reading:
        """Return leaves, scores and probabilities of all trees for a row."""
        leaves, regular = self._descend(row)
        slot = self.slot
        slots = [slot[leaf] for leaf in leaves]
        store, index = self.store, np.array(slots)
        kind = self.options.leaf_prediction
        if kind == "mc":
            scores = store.base.take(index, axis=0)
            bayes = [False] * len(slots)
        else:
            scores = store.scores(index, row)
            active = store.active
            if kind == "nb":
                bayes = [active[s] for s in slots]
            else:
                right, majority = store.bayes_right, store.majority_right
                bayes = [active[s] and right[s] >= majority[s] for s in slots]
        if not store.n_classes:
            return Reading(leaves, slots, regular, scores, np.zeros((len(slots), 1)), scores, False)
        totals = store.total
        certain = min([totals[s] for s in slots]) > 0
        top = np.maximum.reduce(scores, axis=1, keepdims=True)
        proba = self._proba(index, scores, top, bayes, certain)[:, : len(self.labels)]
        return Reading(leaves, slots, regular, scores, top, proba, certain)

    def _proba(
        self, slots: np.ndarray, scores: np.ndarray, top: np.ndarray, bayes: list[bool], certain: bool
    ) -> np.ndarray:
        if all(bayes):
            return _softmax(scores, top, certain)
        count = self.store.count.take(slots, axis=0)
        total = np.add.reduce(count, axis=1, keepdims=True)
        if certain:
            share = np.divide(count, total, out=count)
        else:
            share = np.divide(count, total, out=np.zeros_like(count), where=total > 0)
        if any(bayes):
            np.copyto(share, _softmax(scores, top, certain), where=np.array(bayes)[:, None])
        return share

    def learn(
        self,
        row: Row,
        y: int,
        reading: Reading,
        trees: list[int] | None = None,
        weights: list[float] | None = None,
        columns: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> None:
        """Let trees learn a row.

        Args:
            row: The row.
            y: Number of its class.
            reading: What `read` returned for this row, with nothing learned since.
            trees: Which trees; all if not given.
            weights: Weight of the row in each of them, above 0; 1 if not given.
            columns: Which numeric [E, F] and nominal [E, G] columns each tree of the pool looks at.
        """
        chosen = list(range(self.n_trees)) if trees is None else trees
        if not chosen:
            return
        store = self.store
        mass = [1.0] * len(chosen) if weights is None else weights
        if all(reading.regular):
            places = [reading.leaves[tree] for tree in chosen]
            slots = [reading.slots[tree] for tree in chosen]
        else:
            places = [self._place_to_learn(tree, row, reading) for tree in chosen]
            slots = [self.slot[node] for node in places]
        observing = [position for position, slot in enumerate(slots) if store.active[slot]]
        if self.options.leaf_prediction == "nba":
            self._count_right(observing, chosen, slots, y, reading, mass)
        if observing:
            own = None if weights is None else np.array([mass[position] for position in observing])
            seen = columns
            if columns is not None:
                members = [chosen[position] for position in observing]
                seen = columns[0][members], columns[1][members]
            store.observe(np.array([slots[position] for position in observing]), row, y, own, seen)
        for position in observing:
            observed = store.observed[slots[position]]
            if y not in observed:
                observed.append(y)
        store.add(slots, y, mass)
        for tree, node, slot in zip(chosen, places, slots, strict=True):
            if store.active[slot] and reading.regular[tree]:
                self._maybe_split(tree, node, slot)

    def _count_right(
        self,
        observing: list[int],
        chosen: list[int],
        slots: list[int],
        y: int,
        reading: Reading,
        mass: list[float],
    ) -> None:
        """Count for the leaves that observe a row which of their two predictions had it right."""
        store, scores = self.store, reading.scores
        answers = scores.argmax(axis=1).tolist()
        tied = np.count_nonzero(scores == reading.top) > len(scores)
        for position in observing:
            tree, slot = chosen[position], slots[position]
            best = store.best[slot]
            if best == y or best < 0:
                store.majority_right[slot] += mass[position]
            if best >= 0:
                answer = self._first_of_best(scores[tree].tolist(), slot) if tied else answers[tree]
                if answer == y:
                    store.bayes_right[slot] += mass[position]

    def _first_of_best(self, scores: list[float], slot: int) -> int:
        """Return the class with the best score; of equals, the one that the leaf met first."""
        top = max(scores)
        return next((c for c in self.store.order[slot] if scores[c] == top), -1)

    def _place_to_learn(self, tree: int, row: Row, reading: Reading) -> int:
        """Return the leaf that learns: a value that a test has no branch for gets one."""
        if reading.regular[tree]:
            return reading.leaves[tree]
        node = self.root[tree]
        while (test := self.feature[node]) != LEAF:
            if test < LEAF and node in self.branches:
                code = row.codes[-2 - test]
                known = self.branches[node]
                if code >= 0 and code not in known:
                    leaf = self._new_leaf(tree, self.depth[node] + 1)
                    known[code] = leaf
                    return leaf
            node = self._next(node, row)[0]
        return node

    def reset(self, tree: int) -> None:
        """Replace a tree by an empty one."""
        for node in self._subtree(self.root[tree]):
            if self.feature[node] == LEAF:
                self.store.free.append(self.slot[node])
            self.branches.pop(node, None)
            self.free_nodes.append(node)
        self.n_leaves[tree] = 0
        self.gains[tree] = {}
        self.root[tree] = self._new_leaf(tree, 0)

    def add_tree(self) -> None:
        """Add an empty tree."""
        self.n_leaves.append(0)
        self.gains.append({})
        self.root.append(self._new_leaf(len(self.root), 0))

    def swap(self, one: int, other: int) -> None:
        """Exchange two trees."""
        lists: list[Any] = [self.root, self.n_leaves, self.gains]
        for values in lists:
            values[one], values[other] = values[other], values[one]


def _softmax(scores: np.ndarray, top: np.ndarray, certain: bool) -> np.ndarray:
    """Return probabilities [E, C]; zeros for a tree without any class, which `certain` rules out."""
    shifted = scores - (top if certain else np.where(top > -np.inf, top, 0.0))
    np.exp(shifted, out=shifted)
    total = np.add.reduce(shifted, axis=1, keepdims=True)
    shifted /= total if certain else np.where(total > 0, total, 1.0)
    return shifted
