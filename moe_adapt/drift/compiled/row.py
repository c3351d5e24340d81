"""One row, before and after its label: the two functions that the compiled engine calls."""

import numpy as np

from moe_adapt.drift.committee.reliability import DECAY
from moe_adapt.drift.compiled.bayes import add_row, count_right, leaf_proba, leaf_scores, observe
from moe_adapt.drift.compiled.descend import child_of, descend, step_down
from moe_adapt.drift.compiled.grow import is_due, new_leaf, split
from moe_adapt.drift.compiled.inputs import encode, nearest_proba, settle
from moe_adapt.drift.compiled.jit import entry, kernel
from moe_adapt.drift.compiled.layout import (
    ACTIVE,
    CODE,
    DEPTH,
    FEATURE,
    LEFT,
    NONE,
    ROOT,
    SIBLING,
    SLOT,
)
from moe_adapt.drift.compiled.networks import forward, linear_forward, softmax_into
from moe_adapt.drift.hoeffding.nodes import LEAF

__all__ = ["learn_rest", "learn_trees", "look", "watch_test"]

#: Places of the voices in `voice_at`; -1 there for a voice that is not asked.
TREES, MLP, LINEAR, NEIGHBOURS, ROUTER = range(5)


@kernel
def _odds(sums, place):
    share = sums[0, place] / sums[1, place]
    return share / (1.0 - share + 0.001)


@entry
def look(
    numbers, codes, n_classes, count, seen_rows, voice_at,
    places, code_place, code_value, mean, squares, scaled, bounded, raw, vector,
    nodes, threshold, trees, leaf, marks, weights, gauss, table, whole, tree_sums,
    found, scores, tree_proba, tree_odds,
    mlp, mlp_sizes, linear, router, router_sizes, rows, row_labels, row_weights, scratch,
    voice_sums, voices, voice_weights, logits, proba,
):  # fmt: skip
    """Write what all voices make of a row, and the answer; nothing is learned."""
    encode(numbers, codes, places, code_place, code_value, mean, squares, scaled, count, bounded, raw, vector)
    hidden, inner, out = scratch[0], scratch[1], scratch[2]
    n_in, n_voices = len(vector), len(voice_weights)
    if voice_at[TREES] >= 0:
        complete = True
        for f in range(len(bounded)):
            complete &= bounded[f] == bounded[f]
        voice, total = voices[voice_at[TREES]], 0.0
        for c in range(n_classes):
            voice[c] = 0.0
        for e in range(len(trees)):
            node, regular = descend(nodes, threshold, leaf, bounded, codes, trees[e, ROOT])
            slot = nodes[node, SLOT]
            found[e, 0], found[e, 1] = node, regular
            leaf_scores(
                weights[slot], gauss[slot], table[slot], whole[slot], bounded, codes, complete, n_classes, scores[e]
            )  # fmt: skip
            leaf_proba(leaf[slot], marks[slot], weights[slot], scores[e], n_classes, tree_proba[e])
            odds = _odds(tree_sums, e)
            tree_odds[e] = odds
            for c in range(n_classes):
                voice[c] += odds * tree_proba[e, c]
        for c in range(n_classes):
            total += voice[c]
        for c in range(n_classes):
            voice[c] /= total
    if voice_at[MLP] >= 0:
        forward(mlp, n_in, mlp_sizes[1], mlp_sizes[2], n_classes, vector, hidden, inner, out)
        softmax_into(out, n_classes, voices[voice_at[MLP]])
    if voice_at[LINEAR] >= 0:
        linear_forward(linear, n_in, n_classes, vector, out)
        softmax_into(out, n_classes, voices[voice_at[LINEAR]])
    if voice_at[NEIGHBOURS] >= 0:
        nearest_proba(
            rows, row_labels, row_weights, seen_rows, vector, n_classes, scratch[3], voices[voice_at[NEIGHBOURS]]
        )  # fmt: skip
    if voice_at[ROUTER] >= 0:
        forward(router, n_in, router_sizes[1], router_sizes[2], n_voices, vector, hidden, inner, logits)
        softmax_into(logits, n_voices, voice_weights)
    whole_weight, mass = 0.0, 0.0
    for v in range(n_voices):
        odds = _odds(voice_sums, v)
        voice_weights[v] = odds**2 * voice_weights[v] if voice_at[ROUTER] >= 0 else odds**3
        whole_weight += voice_weights[v]
    for c in range(n_classes):
        proba[c] = 0.0
        for v in range(n_voices):
            proba[c] += voice_weights[v] * voices[v, c]
        mass += proba[c]
    for c in range(n_classes):
        proba[c] /= mass
    for v in range(n_voices):
        voice_weights[v] /= whole_weight


@kernel
def _place_to_learn(
    tree, codes, bounded, nodes, threshold, trees, free_nodes, free_slots, leaf, marks, weights, gauss,
    moments, table, whole,
):  # fmt: skip
    """Return the leaf that learns a row that tests alone did not lead: a new value of a test gets one."""
    node = trees[tree, ROOT]
    while nodes[node, FEATURE] != LEAF:
        test = nodes[node, FEATURE]
        if test < LEAF and threshold[node] < 0.0:
            code = codes[-2 - test]
            if code >= 0 and child_of(nodes, threshold, node, code) == NONE:
                fresh = new_leaf(
                    tree, nodes[node, DEPTH] + 1, nodes, trees, free_nodes, free_slots, leaf, marks, weights,
                    gauss, moments, table, whole,
                )  # fmt: skip
                nodes[fresh, CODE] = code
                last = nodes[node, LEFT]
                while nodes[last, SIBLING] != NONE:
                    last = nodes[last, SIBLING]
                nodes[last, SIBLING] = fresh
                return fresh
        node = step_down(nodes, threshold, leaf, bounded, codes, node)[0]
    return node


@entry
def learn_trees(
    y, w, draws, codes, bounded, found, scores, n_classes, class_order, value_order, settings, short,
    nodes, threshold, trees, free_nodes, free_slots, leaf, marks, classes, weights, gauss, moments, table, whole,
    gains, numeric, nominal,
):  # fmt: skip
    """Let every tree learn a row; return how many leaves are wanted by splits that found no room.

    `short[e]` is the node whose split waits for room in tree `e`, NONE if none does.
    """
    wanted = 0
    for e in range(len(trees)):
        short[e] = NONE
        weight = w * draws[e]
        if weight <= 0.0:
            continue
        node, regular = found[e, 0], found[e, 1]
        if regular == 0:
            node = _place_to_learn(
                e, codes, bounded, nodes, threshold, trees, free_nodes, free_slots, leaf, marks, weights, gauss,
                moments, table, whole,
            )  # fmt: skip
        slot = nodes[node, SLOT]
        if marks[slot, ACTIVE] != 0:
            count_right(leaf[slot], marks[slot], classes[slot], scores[e], y, weight)
            observe(
                marks[slot], classes[slot], weights[slot], gauss[slot], moments[slot], table[slot], whole[slot],
                bounded, codes, numeric[e], nominal[e], y, weight,
            )  # fmt: skip
        add_row(leaf[slot], marks[slot], classes[slot], weights[slot], y, weight)
        if marks[slot, ACTIVE] == 0 or regular == 0:
            continue
        if is_due(e, slot, settings, trees, leaf, marks, classes, weights):
            lacking = split(
                e, node, n_classes, class_order, value_order, settings, nodes, threshold, trees, free_nodes, free_slots,
                leaf, marks, classes, weights, gauss, moments, table, whole, gains, numeric[e], nominal[e],
            )  # fmt: skip
            if lacking:
                short[e] = node
                wanted += lacking
    return wanted


@kernel
def _judge(proba, n_classes, y, w, sums, wrong):
    """Count for some voices [n, C] who was right; write 1 for those that were wrong [n]."""
    for v in range(len(wrong)):
        best = 0
        for c in range(1, n_classes):
            if proba[v, c] > proba[v, best]:
                best = c
        wrong[v] = 0.0 if best == y else 1.0
        sums[0, v] = sums[0, v] * DECAY + w * (1.0 - wrong[v])
        sums[1, v] = sums[1, v] * DECAY + w


@entry
def learn_rest(
    y, w, n_classes, waiting, place, count, voices, voice_sums, voice_wrong, tree_proba, tree_sums, tree_wrong,
    watch_rows, watch_errors, pending, pending_labels, pending_weights, pending_masks, rows, row_labels,
    row_weights, raw, vector, mean, squares, scaled,
):  # fmt: skip
    """Let everything but trees and networks learn a row: reliability, watch, rows that wait, ring, scaling.

    `waiting` is the row's place among those that wait for the networks' step, `place` that in the ring (-1 for
    none), `count` its number, from 1.
    """
    _judge(voices, n_classes, y, w, voice_sums, voice_wrong)
    _judge(tree_proba, n_classes, y, w, tree_sums, tree_wrong)
    for e in range(len(tree_wrong)):
        watch_rows[e] += 1.0
        watch_errors[e] += tree_wrong[e]
    if waiting >= 0:
        pending_labels[waiting], pending_weights[waiting] = y, w
        for d in range(len(vector)):
            pending[waiting, d] = vector[d]
        best, some = 0, False
        for v in range(len(voice_wrong)):
            pending_masks[waiting, v] = 1.0 - voice_wrong[v]
            some |= voice_wrong[v] == 0.0
            if voices[v, y] > voices[best, y]:
                best = v
        if not some:
            pending_masks[waiting, best] = 1.0
    if place >= 0:
        row_labels[place], row_weights[place] = y, w
        for d in range(len(vector)):
            rows[d, place] = vector[d]
    if len(scaled):
        settle(raw, mean, squares, scaled, count)


@entry
def watch_test(rows, errors, best_rows, best_errors, delta, alarms):
    """Write which errors have risen, and return how many: `ErrorWatch.update`."""
    log, double, count = np.log(1.0 / delta), np.log(2.0 / delta), 0
    for e in range(len(rows)):
        alarms[e] = 0
        mean, bound = errors[e] / rows[e], np.sqrt(log / (2.0 * rows[e]))
        safe = max(best_rows[e], 1.0)
        best = best_errors[e] / safe
        if best_rows[e] == 0.0 or mean + bound <= best + np.sqrt(log / (2.0 * safe)):
            best_rows[e], best_errors[e] = rows[e], errors[e]
        else:
            gap = max(1.0 / best_rows[e] - 1.0 / rows[e], 0.0)
            if mean - best >= np.sqrt(0.5 * gap * double):
                alarms[e] = 1
                count += 1
    return count
