"""The tests and leaves of all trees of a pool in flat lists, and how rows find their way through them.

Node numbers are shared by all trees. A row without the value that a test asks for, or with a value that the
test has no branch for, goes to the child that has seen most; how it got to its leaf is reported, because a
tree learns such rows without looking for a split.
"""

from moe_adapt.drift.hoeffding.encoding import Row
from moe_adapt.drift.hoeffding.leaves import LeafStore

__all__ = ["LEAF", "TreeNodes"]

LEAF = -1


class TreeNodes:
    """Nodes by number.

    Attributes:
        store: Statistics of the leaves.
        root: Node at which each tree begins.
        feature: Column of a numeric test; -1 for a leaf; -2 - g for a test of nominal column g.
        threshold: Of a numeric test; for a nominal one the number of the tested value, -1 for all values.
        left: Child of a binary test for rows up to the threshold, or with the value.
        right: The other child.
        depth: Tests above the node.
        slot: Place of a leaf in the store.
        branches: Node of a test of all values -> value -> child.
        free_nodes: Numbers that are not in use.
    """

    def __init__(self) -> None:
        self.store = LeafStore()
        self.root: list[int] = []
        self.feature: list[int] = []
        self.threshold: list[float] = []
        self.left: list[int] = []
        self.right: list[int] = []
        self.depth: list[int] = []
        self.slot: list[int] = []
        self.branches: dict[int, dict[int, int]] = {}
        self.free_nodes: list[int] = []

    def _new_node(self, depth: int, slot: int) -> int:
        if self.free_nodes:
            node = self.free_nodes.pop()
            self.feature[node], self.slot[node], self.depth[node] = LEAF, slot, depth
            return node
        self.feature.append(LEAF)
        self.threshold.append(0.0)
        self.left.append(0)
        self.right.append(0)
        self.depth.append(depth)
        self.slot.append(slot)
        return len(self.feature) - 1

    def _descend(self, row: Row) -> tuple[list[int], list[bool]]:
        feature, threshold, left, right = self.feature, self.threshold, self.left, self.right
        leaves, regular = [], []
        if row.complete and not self.store.n_nominal:
            values = row.numbers.tolist()
            for node in self.root:
                test = feature[node]
                while test >= 0:
                    node = left[node] if values[test] <= threshold[node] else right[node]
                    test = feature[node]
                leaves.append(node)
            return leaves, [True] * len(leaves)
        for node in self.root:
            certain = True
            while feature[node] != LEAF:
                node, known = self._next(node, row)
                certain &= known
            leaves.append(node)
            regular.append(certain)
        return leaves, regular

    def _next(self, node: int, row: Row) -> tuple[int, bool]:
        """Return the child that a row goes to, and whether the test decided it."""
        test = self.feature[node]
        if test >= 0:
            value = row.numbers[test]
            if value == value:
                return (self.left[node] if value <= self.threshold[node] else self.right[node]), True
            return self._heaviest([self.left[node], self.right[node]]), False
        code = row.codes[-2 - test]
        if node not in self.branches:
            if code == -1:
                return self._heaviest([self.left[node], self.right[node]]), False
            return (self.left[node] if code == self.threshold[node] else self.right[node]), True
        child = self.branches[node].get(code)
        if child is not None:
            return child, True
        return self._heaviest(list(self.branches[node].values())), False

    def _heaviest(self, nodes: list[int]) -> int:
        return max(nodes, key=self._weight)

    def _children(self, node: int) -> list[int]:
        if self.feature[node] == LEAF:
            return []
        return (
            list(self.branches[node].values())
            if node in self.branches
            else [self.left[node], self.right[node]]
        )

    def _subtree(self, node: int) -> list[int]:
        found, at = [node], 0
        while at < len(found):
            found += self._children(found[at])
            at += 1
        return found

    def _weight(self, node: int) -> float:
        return sum(
            self.store.total[self.slot[inner]] for inner in self._subtree(node) if self.feature[inner] == LEAF
        )
