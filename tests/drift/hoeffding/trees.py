"""River's trees and ours in one notation, so that tests can compare them."""

from collections.abc import Hashable, Iterable
from itertools import islice
from typing import Any

from river.tree import HoeffdingTreeClassifier

from moe_adapt.drift.hoeffding.tree import FastHoeffdingTree


def river_shape(node: Any) -> tuple:
    if not hasattr(node, "children"):
        return "leaf", {label: round(weight, 6) for label, weight in sorted(node.stats.items())}
    children = [river_shape(child) for child in node.children]
    match type(node).__name__:
        case "NumericBinaryBranch":
            return node.feature, round(node.threshold, 9), *children
        case "NominalBinaryBranch":
            return node.feature, "=", node.value, *children
    return node.feature, "in", {value: children[at] for value, at in node._mapping.items()}


def fast_shape(tree: FastHoeffdingTree, node: int | None = None) -> tuple:
    pool, features, labels = tree._pool, tree._features, tree._labels.labels
    node = pool.root[0] if node is None else node
    test = pool.feature[node]
    if test == -1:
        slot = pool.slot[node]
        weights = pool.store.count[slot].tolist()
        order = sorted(pool.store.order[slot], key=lambda c: labels[c])
        return "leaf", {labels[c]: round(weights[c], 6) for c in order}
    if test < 0:
        name, values = list(features.nominal)[-2 - test], list(features.values[-2 - test])
        if node in pool.branches:
            return (
                name,
                "in",
                {values[v]: fast_shape(tree, child) for v, child in pool.branches[node].items()},
            )
        start = (name, "=", values[int(pool.threshold[node])])
    else:
        start = (list(features.numeric)[test], round(pool.threshold[node], 9))
    return *start, fast_shape(tree, pool.left[node]), fast_shape(tree, pool.right[node])


def run_both(
    stream: Iterable[tuple[dict, Hashable]], rows: int, nominal: list | None = None, **options: Any
) -> tuple[HoeffdingTreeClassifier, FastHoeffdingTree, float]:
    """Return both trees after the rows, and the largest difference of a probability before learning each."""
    slow = HoeffdingTreeClassifier(nominal_attributes=nominal, **options)
    fast = FastHoeffdingTree(
        nominal_attributes=nominal, max_leaves=None, **{"max_share_to_split": 0.99, **options}
    )
    difference = 0.0
    for x, y in islice(iter(stream), rows):
        expected, found = slow.predict_proba_one(x), fast.predict_proba_one(x)
        assert expected.keys() == found.keys()
        difference = max([difference, *(abs(expected[label] - found[label]) for label in expected)])
        slow.learn_one(x, y)
        fast.learn_one(x, y)
    return slow, fast, difference
