"""The trees of a pool in arrays that compiled code can walk, and the way there and back.

Everything of `FastHoeffdingTreePool` that is a list or a dictionary becomes an array with columns: nodes
with tests, leaves with statistics, stacks of free numbers, whose first entry counts them. The children of a
test of all values are a chain, each with the value it is for. Models are kept in the pool's form, so that
they open without numba.
"""

import numpy as np

from moe_adapt.drift.hoeffding.forest import FastHoeffdingTreePool
from moe_adapt.drift.hoeffding.growth import TreeOptions
from moe_adapt.drift.hoeffding.leaves import room
from moe_adapt.drift.hoeffding.nodes import LEAF

__all__ = ["CompiledForest"]

# columns of `nodes`
FEATURE, LEFT, RIGHT, DEPTH, SLOT, SIBLING, CODE = range(7)
# of `trees`
ROOT, LEAVES = range(2)
# of `leaf`
TOTAL, TRIED, MAJORITY, BAYES = range(4)
# of `marks`
BEST, ACTIVE, ORDERED, OBSERVED = range(4)
# of `weights`
COUNT, BASE, NORMALISER = range(3)
NONE = -1
_FIRST = 64


class CompiledForest:
    """Arrays of all trees.

    Args:
        n_trees: How many.
        options: What they share.

    Attributes:
        nodes: Test, children, depth, slot, next sibling and value of every node [N, 7]; threshold [N].
        trees: Root and leaves of every tree [E, 2].
        free_nodes: How many numbers are free, then these [N + 1]; free_slots the same for leaves [S + 1].
        leaf: Weight, weight of the last attempt, of rows the majority and naive Bayes had right [S, 4].
        marks: Majority class, whether it observes, lengths of both lists in `classes` [S, 4].
        classes: Classes in the order met, and observed [S, 2, C].
        weights: Class weight, constant part of the score, normaliser [S, 3, C].
        gauss: Mean and -1 / (2 variance) [S, 2, C, F]; moments as in the pool [S, C, 4, F].
        table: Weights of nominal values and their logarithms, infinity for weight 0 [S, 2, G, V, C].
        whole: Logarithm of the weight of a nominal column [S, G, C].
        gains: Gain of every column's splits per tree [E, F + G].
        settings: Grace, delta, tau, least branch, largest share, thresholds, leaves, patience [8].
    """

    leaf: np.ndarray
    marks: np.ndarray
    classes: np.ndarray
    weights: np.ndarray
    gauss: np.ndarray
    moments: np.ndarray
    table: np.ndarray
    whole: np.ndarray
    SLOTTED = ("leaf", "marks", "classes", "weights", "gauss", "moments", "table", "whole")

    def __init__(self, n_trees: int, options: TreeOptions) -> None:
        self.options = options
        self.shape = (0, 0, 0, 0)
        self.nodes = np.zeros((0, 7), dtype=np.int64)
        self.threshold = np.zeros(0)
        self.trees = np.zeros((n_trees, 2), dtype=np.int64)
        self.free_nodes = np.zeros(1, dtype=np.int64)
        self.free_slots = np.zeros(1, dtype=np.int64)
        self.gains = np.zeros((n_trees, 0))
        for name, shape, kind in self._shapes(0):
            setattr(self, name, np.zeros(shape, dtype=kind))
        most = -1.0 if options.max_leaves is None else float(options.max_leaves)
        self.settings = np.array(
            [
                options.grace_period,
                options.delta,
                options.tau,
                options.min_branch_fraction,
                options.max_share_to_split,
                options.n_splits,
                most,
                options.patience,
            ],
            dtype=np.float64,
        )

    @property
    def n_trees(self) -> int:
        """How many trees there are."""
        return len(self.trees)

    def _shapes(self, slots: int) -> list[tuple[str, tuple[int, ...], type]]:
        c, f, g, v = self.shape
        return [
            ("leaf", (slots, 4), np.float64),
            ("marks", (slots, 4), np.int64),
            ("classes", (slots, 2, c), np.int64),
            ("weights", (slots, 3, c), np.float64),
            ("gauss", (slots, 2, c, f), np.float64),
            ("moments", (slots, c, 4, f), np.float64),
            ("table", (slots, 2, g, v, c), np.float64),
            ("whole", (slots, g, c), np.float64),
        ]

    def resize(self, n_classes: int, n_numeric: int, n_nominal: int, n_values: int) -> None:
        """Make room for more classes, columns and values."""
        shape = (room(n_classes), n_numeric, n_nominal, room(n_values))
        if shape != self.shape:
            gains = np.zeros((self.n_trees, n_numeric + n_nominal))
            old = self.shape[1]
            gains[:, :old], gains[:, n_numeric : n_numeric + self.shape[2]] = (
                self.gains[:, :old],
                self.gains[:, old:],
            )
            self.gains, self.shape = gains, shape
            self._allocate(len(self.leaf))
        self.spare(self.n_trees)

    def _allocate(self, slots: int) -> None:
        for name, shape, kind in self._shapes(slots):
            old = getattr(self, name)
            new: np.ndarray = np.zeros(shape, dtype=kind)
            if name == "moments":
                new[:, :, 2], new[:, :, 3] = np.inf, -np.inf
            elif name == "weights":
                new[:, BASE] = -np.inf
            elif name == "table":
                new[:, 1] = np.inf
            new[tuple(slice(size) for size in old.shape)] = old
            setattr(self, name, new)

    def spare(self, count: int) -> None:
        """Make sure that so many leaves can be added."""
        if self.free_slots[0] < count:
            old = len(self.leaf)
            slots = max(_FIRST, int(1.5 * old), old + count)
            self._allocate(slots)
            self.free_slots = _more(self.free_slots, old, slots)
        if self.free_nodes[0] < count:
            old = len(self.nodes)
            size = max(_FIRST, 2 * old, old + count)
            self.nodes = np.concatenate([self.nodes, np.zeros((size - old, 7), dtype=np.int64)])
            self.threshold = np.concatenate([self.threshold, np.zeros(size - old)])
            self.free_nodes = _more(self.free_nodes, old, size)

    # --- to and from the pool ----------------------------------------------------------------------------

    def take(self, pool: FastHoeffdingTreePool) -> None:
        """Take over the trees of a pool whose tables have been fitted."""
        store = pool.store
        self.shape = (store.n_classes, store.n_numeric, store.n_nominal, store.n_values)
        self.gains = np.zeros((self.n_trees, self.shape[1] + self.shape[2]))
        slots, count = len(store.total), len(pool.feature)
        self._allocate(slots)
        columns = (pool.feature, pool.left, pool.right, pool.depth, pool.slot)
        self.nodes = np.full((count, 7), NONE, dtype=np.int64)
        self.nodes[:, :5] = np.array(columns, dtype=np.int64).T.reshape(count, 5)
        self.threshold = np.array(pool.threshold, dtype=np.float64)
        for node, children in pool.branches.items():
            chain = list(children.items())
            self.nodes[node, LEFT] = chain[0][1] if chain else NONE
            for (code, child), after in zip(chain, [*chain[1:], (0, NONE)], strict=True):
                self.nodes[child, CODE], self.nodes[child, SIBLING] = code, after[1]
        self.trees[:, ROOT], self.trees[:, LEAVES] = pool.root, pool.n_leaves
        self.free_nodes = np.array([len(pool.free_nodes), *pool.free_nodes, *[0] * count], dtype=np.int64)
        self.free_slots = np.array([len(store.free), *store.free, *[0] * slots], dtype=np.int64)
        self.free_nodes, self.free_slots = self.free_nodes[: count + 1], self.free_slots[: slots + 1]
        for column, name in enumerate(("total", "tried_at", "majority_right", "bayes_right")):
            self.leaf[:, column] = getattr(store, name)
        self.marks[:, BEST], self.marks[:, ACTIVE] = store.best, store.active
        for row, lists in enumerate((store.order, store.observed)):
            for slot, known in enumerate(lists):
                self.classes[slot, row, : len(known)] = known
                self.marks[slot, ORDERED + row] = len(known)
        for column, name in enumerate(("count", "base", "normaliser")):
            self.weights[:, column] = getattr(store, name)[:slots]
        self.gauss[:], self.moments[:] = store.gauss[:slots], store.moments[:slots]
        self.table[:, 0] = store.table[:slots]
        with np.errstate(divide="ignore"):
            self.table[:, 1] = np.where(self.table[:, 0] > 0, np.log(self.table[:, 0]), np.inf)
            self.whole[:] = np.log(self.table[:, 0].sum(axis=2))
        for tree, own in enumerate(pool.gains):
            for test, gain in own.items():
                self.gains[tree, test if test >= 0 else self.shape[1] - 2 - test] = gain
        self.spare(self.n_trees)

    def pool(self) -> FastHoeffdingTreePool:
        """Return the same trees as a pool."""
        found = FastHoeffdingTreePool(self.n_trees, self.options)
        store, slots = found.store, len(self.leaf)
        store.resize(*self.shape)
        store._allocate(slots)
        for column, name in enumerate(("feature", "left", "right", "depth", "slot")):
            setattr(found, name, self.nodes[:, column].tolist())
        found.threshold = self.threshold.tolist()
        found.root, found.n_leaves = self.trees[:, ROOT].tolist(), self.trees[:, LEAVES].tolist()
        found.free_nodes = self.free_nodes[1 : 1 + self.free_nodes[0]].tolist()
        store.free = self.free_slots[1 : 1 + self.free_slots[0]].tolist()
        free = set(found.free_nodes)
        for node, (test, value) in enumerate(zip(found.feature, found.threshold, strict=True)):
            if node not in free and test < LEAF and value < 0:
                found.branches[node] = self._chain(node)
        for column, name in enumerate(("total", "tried_at", "majority_right", "bayes_right")):
            setattr(store, name, self.leaf[:, column].tolist())
        store.best, store.active = self.marks[:, BEST].tolist(), [bool(on) for on in self.marks[:, ACTIVE]]
        store.order, store.observed = (
            [self.classes[slot, row, : self.marks[slot, ORDERED + row]].tolist() for slot in range(slots)]
            for row in range(2)
        )
        for column, name in enumerate(("count", "base", "normaliser")):
            getattr(store, name)[:] = self.weights[:, column]
        store.gauss[:], store.moments[:], store.table[:] = self.gauss, self.moments, self.table[:, 0]
        with np.errstate(invalid="ignore"):
            shares = self.table[:, 1] - self.whole[:, :, None]
        store.logs[:] = np.where(self.table[:, 0] > 0, shares, 0.0)
        found.gains = self.gain_tables()
        return found

    def gain_tables(self) -> list[dict[int, float]]:
        """Return what the splits of each tree gained, by test."""
        width = self.shape[1]
        return [
            {
                column if column < width else width - 2 - column: gain
                for column, gain in enumerate(own)
                if gain
            }
            for own in self.gains.tolist()
        ]

    def _chain(self, node: int) -> dict[int, int]:
        found, child = {}, int(self.nodes[node, LEFT])
        while child != NONE:
            found[int(self.nodes[child, CODE])] = child
            child = int(self.nodes[child, SIBLING])
        return found


def _more(stack: np.ndarray, old: int, new: int) -> np.ndarray:
    """Return a stack of free numbers with room for `new`, and `old` to `new - 1` on it, the least on top."""
    found = np.zeros(new + 1, dtype=np.int64)
    count = int(stack[0])
    found[1 : 1 + count] = stack[1 : 1 + count]
    fresh = np.arange(new - 1, old - 1, -1)
    found[1 + count : 1 + count + len(fresh)] = fresh
    found[0] = count + len(fresh)
    return found
