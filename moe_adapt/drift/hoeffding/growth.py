r"""Where and how Hoeffding trees grow.

A leaf is split when the gain of its best test exceeds that of the second best by
\(\epsilon = \sqrt{R^2 \ln(1/\delta) / 2n}\), \(R = \log_2\) of the number of classes, or when
\(\epsilon < \tau\); it is looked at again after every `grace_period` of weight. With `patience`, a leaf
whose best test led by \(g\) is looked at again when its weight has reached \(\min(a / g^2, a / \tau^2, n +
4\,\text{grace})\), \(a = R^2 \ln(1/\delta) / 2\), but not before a grace period has passed: before that no
attempt can succeed unless the gap grows.

Reference: Domingos and Hulten, Mining High-Speed Data Streams, KDD 2000.
"""

import math
from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np

from moe_adapt.drift.hoeffding.encoding import ordered
from moe_adapt.drift.hoeffding.labels import LabelTable
from moe_adapt.drift.hoeffding.nodes import TreeNodes
from moe_adapt.drift.hoeffding.splits import (
    entropy,
    nominal_splits,
    numeric_splits,
    split_weights,
)
from moe_adapt.errors import UserError

__all__ = ["GrowingTrees", "TreeOptions"]

#: Weight that sums of fractional weights may be off by, compared with adding them afresh.
_ROUNDING = 1e-6
#: Grace periods that patience waits at most.
_LONGEST_WAIT = 4


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
        patience: After a failed attempt wait until the bound may have sunk to the gap that was found.
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
    patience: bool = False

    def __post_init__(self) -> None:
        if self.leaf_prediction not in ("nba", "nb", "mc"):
            raise UserError(f"leaf_prediction is 'nba', 'nb' or 'mc', not {self.leaf_prediction!r}.")
        if not 0 < self.delta < 1:
            raise UserError(f"delta is a probability above 0 and below 1, got {self.delta}.")
        if self.grace_period < 1:
            raise UserError(f"grace_period must be at least 1, got {self.grace_period}.")
        if self.max_leaves is not None and self.max_leaves < 1:
            raise UserError(f"max_leaves must be at least 1 or None, got {self.max_leaves}.")


class GrowingTrees(TreeNodes):
    """Trees whose leaves become tests.

    Args:
        options: What the trees share.

    Attributes:
        n_leaves: Leaves of each tree.
        labels: The classes.
        values: Number of each value, per nominal column.
        gains: Per tree and test, information gain times weight of the splits so far.
    """

    def __init__(self, options: TreeOptions) -> None:
        super().__init__()
        self.options = options
        self.n_leaves: list[int] = []
        self.labels = LabelTable()
        self.values: list[dict[Hashable, int]] = []
        self.gains: list[dict[int, float]] = []

    def _new_leaf(self, tree: int, depth: int) -> int:
        self.n_leaves[tree] += 1
        return self._new_node(depth, self.store.new())

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
        gap = merits[best] - merits[second]
        if not (gap > bound or bound < options.tau):
            if options.patience:
                self._wait(slot, total, gap, spread)
            return
        if merits[best] == -math.inf:
            store.forget(slot)
            return
        test = best - 1 if best <= store.n_numeric else store.n_numeric - 1 - best
        self.gains[tree][test] = self.gains[tree].get(test, 0.0) + merits[best] * total
        if best <= store.n_numeric:
            self._split_numeric(tree, node, slot, best - 1, float(numeric.threshold[best - 1]))
        else:
            column = best - 1 - store.n_numeric
            self._split_nominal(tree, node, slot, column, int(nominal.value[column]))

    def _wait(self, slot: int, total: float, gap: float, spread: float) -> None:
        """Put off the next attempt; `tried_at` is a grace period before it."""
        options = self.options
        needed = 0.5 * spread * spread * math.log(1.0 / options.delta)
        least = max(gap, options.tau) if gap == gap else options.tau
        wait = min(needed / (least * least) - total, _LONGEST_WAIT * options.grace_period)
        self.store.tried_at[slot] = total + max(wait - options.grace_period, 0.0)

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
            order = sorted(store.order[slot], key=self.labels.rank.__getitem__)
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
