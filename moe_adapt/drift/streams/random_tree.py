"""MOA's random tree generator: labels given by a random decision tree over nominal and numeric columns.

Reference: Domingos and Hulten, Mining High-Speed Data Streams, KDD 2000; rules as in MOA.
"""

from collections.abc import Iterator
from typing import NamedTuple

from moe_adapt.drift.streams.base import Concept, Row
from moe_adapt.drift.streams.java_random import JavaRandom

__all__ = ["RandomTree"]


class _Split(NamedTuple):
    column: int
    threshold: float | None
    children: list["_Split | int"]


class RandomTree(Concept):
    """Rows labelled by a random tree.

    Args:
        n_classes: Classes.
        n_nominal: Nominal columns, which come first.
        n_numeric: Numeric columns, in [0, 1).
        n_values: Values of each nominal column.
        depth: Deepest level of the tree.
        first_leaf: Level from which on a node may be a leaf.
        leaf_share: Share of leaves from that level on.
        tree_seed: Seed of the tree.
        seed: Seed of the rows.
    """

    def __init__(
        self,
        n_classes: int = 2,
        n_nominal: int = 5,
        n_numeric: int = 5,
        n_values: int = 5,
        depth: int = 5,
        first_leaf: int = 3,
        leaf_share: float = 0.15,
        tree_seed: int = 1,
        seed: int = 1,
    ) -> None:
        self.n_classes, self.n_nominal, self.n_numeric, self.n_values = (
            n_classes,
            n_nominal,
            n_numeric,
            n_values,
        )
        self.depth, self.first_leaf, self.leaf_share = depth, first_leaf, leaf_share
        self.tree_seed, self.seed = tree_seed, seed
        names = [f"nominal{i}" for i in range(1, n_nominal + 1)]
        self.nominal = frozenset(names)
        self.features = (*names, *(f"numeric{i}" for i in range(1, n_numeric + 1)))

    def __iter__(self) -> Iterator[Row]:
        root = self._grow(
            JavaRandom(self.tree_seed),
            0,
            list(range(self.n_nominal)),
            [0.0] * self.n_numeric,
            [1.0] * self.n_numeric,
        )
        random = JavaRandom(self.seed)
        while True:
            values: list[float] = [random.integer(self.n_values) for _ in range(self.n_nominal)]
            values += [random.uniform() for _ in range(self.n_numeric)]
            node = root
            while not isinstance(node, int):
                value = values[node.column]
                branch = int(value) if node.threshold is None else int(value >= node.threshold)
                node = node.children[branch]
            yield values, node

    def _grow(
        self, random: JavaRandom, level: int, unused: list[int], low: list[float], high: list[float]
    ) -> _Split | int:
        if level >= self.depth or (level >= self.first_leaf and self.leaf_share >= 1.0 - random.uniform()):
            return random.integer(self.n_classes)
        chosen = random.integer(len(unused) + self.n_numeric)
        if chosen < len(unused):
            column = unused[chosen]
            rest = [other for other in unused if other != column]
            children = [self._grow(random, level + 1, rest, low, high) for _ in range(self.n_values)]
            return _Split(column, None, children)
        number = chosen - len(unused)
        threshold = low[number] + (high[number] - low[number]) * random.uniform()
        lower, upper = [*high], [*low]
        lower[number] = upper[number] = threshold
        left = self._grow(random, level + 1, unused, low, lower)
        right = self._grow(random, level + 1, unused, upper, high)
        return _Split(self.n_nominal + number, threshold, [left, right])
