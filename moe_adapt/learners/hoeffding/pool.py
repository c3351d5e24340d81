r"""A pool of Hoeffding trees in flat arrays: all trees read a row at once, any of them learn it.

A Hoeffding tree grows where it has seen enough: a leaf is split when the gain of its best test exceeds that
of the second best by \(\epsilon = \sqrt{R^2 \ln(1/\delta) / 2n}\), \(R = \log_2\) of the number of classes,
or when \(\epsilon < \tau\). Predictions are adaptive naive Bayes: in each leaf the better, so far, of naive
Bayes and majority.

Split for split this is River's `HoeffdingTreeClassifier` (tests), several times faster because the arithmetic
of all trees is done together. Kept are also its quirks: a column alone with a finite gain is split on at
once, equal gains go to the last column. Not kept: (1) `max_share_to_split` is 1.0 by default; River's 0.99
makes nearly pure leaves forget all they observed at every attempt; (2) instead of a limit in bytes that is
checked every million rows, `max_leaves` stops a tree's growth; (3) a nominal column with one value is never
split on.

Reference: Domingos and Hulten, KDD 2000; Gama et al., Accurate Decision Trees for Mining High-Speed Data
Streams, KDD 2003.
"""

import math
from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np

from moe_adapt.errors import UserError
from moe_adapt.learners.hoeffding.encoding import FeatureTable, Row, ordered
from moe_adapt.learners.hoeffding.labels import LabelTable
from moe_adapt.learners.hoeffding.nodes import LEAF, TreeNodes
from moe_adapt.learners.hoeffding.splits import (
    entropy,
    nominal_splits,
    numeric_splits,
    split_weights,
)

__all__ = ["FastHoeffdingTreePool", "Reading", "TreeOptions"]

#: Weight that sums of fractional weights may be off by, compared with adding them afresh.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class TreeOptions:
    """What all trees of a pool share; names and defaults are River's where it has them.

    Args:
        grace_period: Weight between two attempts to split a leaf.
        delta: Probability of a wrong choice of test, above 0 and below 1.
        tau: Bound below which the best test is taken even if another is as good.
        leaf_prediction: ``nba`` (adaptive), ``nb`` (naive Bayes) or ``mc`` (majority class).
        max_depth: Depth at which leaves stay leaves; None for no limit.
        max_leaves: Leaves at which a tree stops growing; None for no limit.
        binary_split: Only tests of one value against the rest for nominal columns.
        min_branch_fraction: Share of the weight that two branches must exceed.
        max_share_to_split: Share of the majority class above which a leaf is not split.
        n_splits: Thresholds tried per numeric column.
    """

    grace_period: int = 200
    delta: float = 1e-7
    tau: float = 0.05
    leaf_prediction: str = "nba"
    max_depth: int | None = None
    max_leaves: int | None = 500
    binary_split: bool = False
    min_branch_fraction: float = 0.01
    max_share_to_split: float = 1.0
    n_splits: int = 10

    def __post_init__(self) -> None:
        if self.leaf_prediction not in ("nba", "nb", "mc"):
            raise UserError(f"leaf_prediction is 'nba', 'nb' or 'mc', not {self.leaf_prediction!r}.")
        if not 0 < self.delta < 1:
            raise UserError(f"delta is a probability above 0 and below 1, got {self.delta}.")
        if self.grace_period < 1:
            raise UserError(f"grace_period must be at least 1, got {self.grace_period}.")
        if self.max_leaves is not None and self.max_leaves < 1:
            raise UserError(f"max_leaves must be at least 1 or None, got {self.max_leaves}.")


@dataclass(slots=True)
class Reading:
    """What the trees make of a row before they learn it; stale once any tree has learned.

    Attributes:
        leaves: Node of the leaf in each tree [E].
        slots: Their slots [E].
        regular: Whether the row reached each leaf by tests alone, without a missing or unknown value [E].
        scores: Naive Bayes log scores [E, C].
        proba: Probabilities [E, C]; all zero in a tree whose leaf is empty.
    """

    leaves: list[int]
    slots: list[int]
    regular: list[bool]
    scores: np.ndarray
    proba: np.ndarray


class FastHoeffdingTreePool(TreeNodes):
    """Hoeffding trees that share their arrays.

    Args:
        n_trees: How many.
        options: What they share.
    """

    def __init__(self, n_trees: int, options: TreeOptions | None = None) -> None:
        if n_trees < 1:
            raise UserError(f"a pool has at least one tree, got {n_trees}.")
        self.options = options or TreeOptions()
        super().__init__()
        self.label_rank: list[int] = []  # place of each class in the order of labels
        self.values: list[dict[Hashable, int]] = []  # value -> number of each nominal column
        self.n_leaves = [0] * n_trees
        self.root = [self._new_leaf(tree, 0) for tree in range(n_trees)]

    @property
    def n_trees(self) -> int:
        """How many trees there are."""
        return len(self.root)

    def fit(self, features: FeatureTable, labels: LabelTable) -> None:
        """Make room for the columns, values and classes that these tables hold by now."""
        self.store.resize(len(labels), len(features.numeric), len(features.nominal), features.n_values)
        self.label_rank, self.values = labels.rank, features.values

    def read(self, row: Row) -> Reading:
        """Return leaves, scores and probabilities of all trees for a row."""
        leaves, regular = self._descend(row)
        slot = self.slot
        slots = [slot[leaf] for leaf in leaves]
        store = self.store
        kind = self.options.leaf_prediction
        if kind == "mc":
            scores = store.base.take(slots, axis=0)
            bayes = [False] * len(slots)
        else:
            scores = store.scores(slots, row)
            active = store.active
            if kind == "nb":
                bayes = [active[s] for s in slots]
            else:
                right, majority = store.bayes_right, store.majority_right
                bayes = [active[s] and right[s] >= majority[s] for s in slots]
        return Reading(leaves, slots, regular, scores, self._proba(slots, scores, bayes))

    def _proba(self, slots: list[int], scores: np.ndarray, bayes: list[bool]) -> np.ndarray:
        store = self.store
        if not scores.shape[1]:
            return np.zeros(scores.shape)
        if all(bayes):
            return _softmax(scores)
        count = store.count.take(slots, axis=0)
        total = count.sum(axis=1, keepdims=True)
        share = np.divide(count, total, out=np.zeros_like(count), where=total > 0)
        if not any(bayes):
            return share
        return np.where(np.array(bayes)[:, None], _softmax(scores), share)

    def learn(
        self,
        row: Row,
        y: int,
        reading: Reading,
        trees: list[int] | None = None,
        weights: list[float] | None = None,
    ) -> None:
        """Let trees learn a row.

        Args:
            row: The row.
            y: Number of its class.
            reading: What `read` returned for this row, with nothing learned since.
            trees: Which trees; all if not given.
            weights: Weight of the row in each of them, above 0; 1 if not given.
        """
        chosen = list(range(self.n_trees)) if trees is None else trees
        if not chosen:
            return
        store = self.store
        mass = [1.0] * len(chosen) if weights is None else weights
        places = [self._place_to_learn(tree, row, reading) for tree in chosen]
        slots = [self.slot[node] for node in places]
        observing = []
        adaptive = self.options.leaf_prediction == "nba"
        for position, (tree, slot) in enumerate(zip(chosen, slots, strict=True)):
            if not store.active[slot]:
                continue
            observing.append(position)
            if adaptive:
                best = store.best[slot]
                if best == y or best < 0:
                    store.majority_right[slot] += mass[position]
                if best >= 0 and self._bayes_class(reading.scores[tree], slot) == y:
                    store.bayes_right[slot] += mass[position]
        index, weight = np.array(slots), np.array(mass)
        if len(observing) == len(slots):
            store.observe(index, row, y, weight)
        elif observing:
            store.observe(index[observing], row, y, weight[observing])
        for position in observing:
            observed = store.observed[slots[position]]
            if y not in observed:
                observed.append(y)
        store.add(index, y, weight)
        for tree, node, slot in zip(chosen, places, slots, strict=True):
            if store.active[slot] and reading.regular[tree]:
                self._maybe_split(tree, node, slot)

    def _bayes_class(self, scores: np.ndarray, slot: int) -> int:
        values = scores.tolist()
        top = max(values)
        if values.count(top) == 1:
            return values.index(top)
        return next((c for c in self.store.order[slot] if values[c] == top), -1)

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

    def _new_leaf(self, tree: int, depth: int) -> int:
        self.n_leaves[tree] += 1
        return self._new_node(depth, self.store.new())

    def reset(self, tree: int) -> None:
        """Replace a tree by an empty one."""
        for node in self._subtree(self.root[tree]):
            if self.feature[node] == LEAF:
                self.store.free.append(self.slot[node])
            self.branches.pop(node, None)
            self.free_nodes.append(node)
        self.n_leaves[tree] = 0
        self.root[tree] = self._new_leaf(tree, 0)

    def add_tree(self) -> None:
        """Add an empty tree."""
        self.n_leaves.append(0)
        self.root.append(self._new_leaf(len(self.root), 0))

    def swap(self, one: int, other: int) -> None:
        """Exchange two trees."""
        for values in (self.root, self.n_leaves):
            values[one], values[other] = values[other], values[one]

    def _maybe_split(self, tree: int, node: int, slot: int) -> None:
        options, store = self.options, self.store
        if options.max_leaves is not None and self.n_leaves[tree] >= options.max_leaves:
            return
        if options.max_depth is not None and self.depth[node] >= options.max_depth:
            store.active[slot] = False
            return
        if store.total[slot] - store.tried_at[slot] < options.grace_period - _ROUNDING:
            return
        total = store.exact_total(slot)
        if total - store.tried_at[slot] < options.grace_period:
            return
        store.tried_at[slot] = total
        if np.count_nonzero(store.count[slot]) > 1:
            self._try_split(tree, node, slot)

    def _try_split(self, tree: int, node: int, slot: int) -> None:
        options, store = self.options, self.store
        total, count = store.total[slot], store.count[slot]
        if count.max() / total > options.max_share_to_split:
            store.forget(slot)
            return
        before = entropy(count)
        merits = [-math.inf]  # not to split
        if store.n_numeric:
            n, squares, low, high = store.moments[slot].transpose(1, 0, 2)
            share, splits = options.min_branch_fraction, options.n_splits
            numeric = numeric_splits(n, store.gauss[slot, 0], squares, low, high, before, share, splits)
            merits += numeric.merit.tolist()
        if store.n_nominal:
            table = store.table[slot].transpose(2, 0, 1)
            nominal = nominal_splits(table, before, options.min_branch_fraction, options.binary_split)
            merits += nominal.merit.tolist()
        ranked = sorted(range(len(merits)), key=merits.__getitem__)
        if len(ranked) < 2:
            return
        best, second = ranked[-1], ranked[-2]
        spread = math.log2(max(len(store.order[slot]), 2))
        bound = math.sqrt(spread * spread * math.log(1.0 / options.delta) / (2.0 * total))
        if not (merits[best] - merits[second] > bound or bound < options.tau):
            return
        if merits[best] == -math.inf:
            store.forget(slot)
        elif best <= store.n_numeric:
            self._split_numeric(tree, node, slot, best - 1, float(numeric.threshold[best - 1]))
        else:
            column = best - 1 - store.n_numeric
            self._split_nominal(tree, node, slot, column, int(nominal.value[column]))

    def _child(self, tree: int, parent: int, weights: dict[int, float]) -> int:
        node = self._new_leaf(tree, self.depth[parent] + 1)
        self.store.start_with(self.slot[node], weights)
        return node

    def _split_numeric(self, tree: int, node: int, slot: int, column: int, threshold: float) -> None:
        store = self.store
        pair = split_weights(
            store.observed[slot],
            store.moments[slot, :, :, column],
            store.gauss[slot, 0, :, column],
            threshold,
        )
        children = [self._child(tree, node, weights) for weights in pair]
        self.feature[node] = column
        self.threshold[node] = threshold
        self.left[node], self.right[node] = children
        self._retire(tree, slot)

    def _split_nominal(self, tree: int, node: int, slot: int, column: int, value: int) -> None:
        store = self.store
        table = store.table[slot, column].tolist()  # [V, C]
        if value < 0:
            order = sorted(store.order[slot], key=self.label_rank.__getitem__)
            self.branches[node] = {
                code: self._child(tree, node, {c: weights[c] for c in order if weights[c] > 0})
                for code, weights in ((code, table[code]) for code in ordered(self.values[column]).values())
                if sum(weights) > 0
            }
        else:
            first = store.observed[slot][:1]
            order = [*first, *(c for c in store.order[slot] if c not in first)]
            rest = [
                sum(column) - own for column, own in zip(zip(*table, strict=True), table[value], strict=True)
            ]
            self.left[node], self.right[node] = (
                self._child(tree, node, {c: weights[c] for c in order if weights[c] > 0})
                for weights in (table[value], rest)
            )
        self.feature[node], self.threshold[node] = -2 - column, float(value)
        self._retire(tree, slot)

    def _retire(self, tree: int, slot: int) -> None:
        """Give back the slot of a leaf that became a test."""
        self.n_leaves[tree] -= 1
        self.store.free.append(slot)


def _softmax(scores: np.ndarray) -> np.ndarray:
    """Return probabilities [E, C]; zeros for a tree without any class."""
    top = scores.max(axis=1, keepdims=True)
    shifted = scores - np.where(top > -np.inf, top, 0.0)
    np.exp(shifted, out=shifted)
    total = shifted.sum(axis=1, keepdims=True)
    shifted /= np.where(total > 0, total, 1.0)
    return shifted
