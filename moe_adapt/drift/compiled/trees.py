"""All compiled trees and one row: reading and learning; `f` is the `Forest`."""

from moe_adapt.drift.compiled.bayes import add_row, count_right, leaf_proba, leaf_scores, observe
from moe_adapt.drift.compiled.descend import child_of, descend, step_down
from moe_adapt.drift.compiled.grow import is_due, new_leaf, split
from moe_adapt.drift.compiled.jit import kernel
from moe_adapt.drift.compiled.layout import (
    ACTIVE,
    CODE,
    DEPTH,
    FEATURE,
    LEAVES,
    LEFT,
    NONE,
    ROOT,
    SIBLING,
    SLOT,
)
from moe_adapt.drift.hoeffding.nodes import LEAF

__all__ = ["learn_trees", "read_trees"]


@kernel
def read_trees(f, numbers, codes, n_classes, found, scores, proba):
    """Write leaf and regularity [E, 2], scores [E, C] and probabilities [E, C] of all trees for a row."""
    nodes, threshold, leaf, marks, weights = f.nodes, f.threshold, f.leaf, f.marks, f.weights
    gauss, table, whole, nominal, trees = f.gauss, f.table, f.whole, f.nominal, f.trees
    complete = True
    for k in range(len(numbers)):
        complete &= numbers[k] == numbers[k]
    for tree in range(len(trees)):
        node, regular = descend(nodes, threshold, leaf, numbers, codes, trees[tree, ROOT])
        slot = nodes[node, SLOT]
        found[tree, 0], found[tree, 1] = node, regular
        leaf_scores(
            weights[slot], gauss[slot], table[slot], whole[slot], nominal[tree], numbers, codes, complete,
            n_classes, scores[tree],
        )  # fmt: skip
        leaf_proba(leaf[slot], marks[slot], weights[slot], scores[tree], n_classes, proba[tree])


@kernel
def _place_to_learn(f, tree, numbers, codes):
    """Return the leaf that learns a row that tests alone did not lead: a new value of a test gets one."""
    node = f.trees[tree, ROOT]
    while f.nodes[node, FEATURE] != LEAF:
        test = f.nodes[node, FEATURE]
        if test < LEAF and f.threshold[node] < 0.0:
            code = codes[-2 - test]
            if code >= 0 and child_of(f.nodes, node, code) == NONE:
                fresh, last = new_leaf(f, tree, f.nodes[node, DEPTH] + 1), f.nodes[node, LEFT]
                f.nodes[fresh, CODE] = code
                while f.nodes[last, SIBLING] != NONE:
                    last = f.nodes[last, SIBLING]
                f.nodes[last, SIBLING] = fresh
                return fresh
        node = step_down(f.nodes, f.threshold, f.leaf, numbers, codes, node)[0]
    return node


@kernel
def learn_trees(f, found, scores, numbers, codes, n_classes, y, w, draws, short):
    """Let all trees learn a row; return how many leaves are wanted by splits that found no room.

    `short[e]` becomes the node of tree e whose split waits for room, NONE if none does.
    """
    nodes, leaf, marks, classes, weights, settings = (
        f.nodes,
        f.leaf,
        f.marks,
        f.classes,
        f.weights,
        f.settings,
    )
    gauss, moments, table, whole, trees = f.gauss, f.moments, f.table, f.whole, f.trees
    wanted = 0
    for tree in range(len(trees)):
        short[tree], weight = NONE, w * draws[tree]
        if weight <= 0.0:
            continue
        node, regular = found[tree, 0], found[tree, 1]
        if regular == 0:
            node = _place_to_learn(f, tree, numbers, codes)
        slot = nodes[node, SLOT]
        active = marks[slot, ACTIVE] != 0
        if active:
            count_right(leaf[slot], marks[slot], classes[slot], scores[tree], y, weight)
            observe(
                marks[slot], classes[slot], weights[slot], gauss[slot], moments[slot], table[slot],
                whole[slot], f.numeric[tree], f.nominal[tree], numbers, codes, y, weight,
            )  # fmt: skip
        add_row(leaf[slot], marks[slot], classes[slot], weights[slot], y, weight)
        if (
            active
            and regular != 0
            and is_due(settings, trees[tree, LEAVES], leaf[slot], marks[slot], classes[slot], weights[slot])
        ):
            lacking = split(f, tree, node, n_classes)
            if lacking > 0:
                short[tree] = node
                wanted += lacking
    return wanted
