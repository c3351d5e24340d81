"""One row, before and after its label: the functions that the compiled engine calls.

Their arrays come in a table (`moe_adapt.drift.compiled.block`), its lines are `LINES`.
"""

import math

from moe_adapt.drift.committee.neighbours import WINDOW
from moe_adapt.drift.committee.reliability import DECAY
from moe_adapt.drift.compiled.block import (
    LINES,
    floats1,
    floats2,
    ints1,
    ints2,
    open_forest,
    singles1,
    singles2,
)
from moe_adapt.drift.compiled.grow import replace_tree, split
from moe_adapt.drift.compiled.inputs import encode, settle
from moe_adapt.drift.compiled.jit import entry, kernel, part
from moe_adapt.drift.compiled.nearest import compare, nearest_proba
from moe_adapt.drift.compiled.networks import forward, linear_forward, linear_step, softmax_into, step
from moe_adapt.drift.compiled.trees import learn_trees, read_trees

__all__ = ["learn", "look", "renew_tree", "split_again", "train", "watch"]

#: Places of the voices in `voice_at`; -1 there for a voice that is not asked.
TREES, MLP, LINEAR, NEIGHBOURS, ROUTER = range(5)


@kernel
def _odds(sums, place):
    share = sums[0, place] / sums[1, place]
    return share / (1.0 - share + 0.001)


@part
def _ask_trees(table, numbers, codes, n_classes, voice):
    """Write what the committee of trees says [C]."""
    proba, sums, tree_odds = (
        floats2(table, LINES.tree_proba), floats2(table, LINES.tree_sums), floats1(table, LINES.tree_odds)
    )  # fmt: skip
    found, scores = ints2(table, LINES.found), floats2(table, LINES.scores)
    read_trees(open_forest(table), numbers, codes, n_classes, found, scores, proba)
    for c in range(n_classes):
        voice[c] = 0.0
    for e in range(len(tree_odds)):
        tree_odds[e] = _odds(sums, e)
        for c in range(n_classes):
            voice[c] += tree_odds[e] * proba[e, c]
    total = 0.0
    for c in range(n_classes):
        total += voice[c]
    for c in range(n_classes):
        voice[c] /= total


@part
def _ask_neighbours(table, seen, vector, n_classes, odds, voice):
    """Write what the nearest rows say [C]."""
    sums = floats2(table, LINES.near_sums)
    odds[0], odds[1] = _odds(sums, 0), _odds(sums, 1)
    nearest_proba(
        singles2(table, LINES.rows), singles1(table, LINES.relevance), ints1(table, LINES.row_labels),
        floats1(table, LINES.row_weights), odds, seen, vector, n_classes, singles1(table, LINES.near_squares),
        ints1(table, LINES.near), floats2(table, LINES.near_answers), voice,
    )  # fmt: skip


@part
def _learn_neighbours(table, seen, vector, n_classes, y, w):
    """Put the row in the place of the oldest, after the others have said which inputs matter."""
    rows, labels = singles2(table, LINES.rows), ints1(table, LINES.row_labels)
    sums, wrong = floats2(table, LINES.near_sums), floats1(table, LINES.near_wrong)
    _judge(floats2(table, LINES.near_answers), n_classes, y, w, sums, wrong)
    relevance, near = singles1(table, LINES.relevance), ints1(table, LINES.near)
    compare(rows, relevance, labels, near, vector, y, floats2(table, LINES.gaps))
    place = seen % WINDOW
    labels[place] = y
    floats1(table, LINES.row_weights)[place] = w
    for d in range(len(vector)):
        rows[d, place] = vector[d]


@entry
def look(numbers, codes, n_classes, count, seen_rows, table):
    """Write what all voices make of a row, learning nothing; return the place of the answer.

    `count` rows have moved the scaling, `seen_rows` the ring.
    """
    bounded, vector, scratch = (
        floats1(table, LINES.bounded),
        floats1(table, LINES.vector),
        floats2(table, LINES.scratch),
    )
    at, voices = ints1(table, LINES.voice_at), floats2(table, LINES.voices)
    encode(
        numbers, codes, ints1(table, LINES.places), ints2(table, LINES.code_place), floats2(table,
        LINES.code_value), floats1(table, LINES.mean), floats1(table, LINES.squares), floats1(table,
        LINES.scaled), count, bounded, floats1(table, LINES.raw), vector,
    )  # fmt: skip
    kept = ints1(table, LINES.codes)
    for g in range(len(codes)):
        kept[g] = codes[g]
    hidden, inner, out, n_in = scratch[0], scratch[1], scratch[2], len(vector)
    if at[TREES] >= 0:
        _ask_trees(table, bounded, codes, n_classes, voices[at[TREES]])
    if at[MLP] >= 0:
        sizes = ints1(table, LINES.mlp_sizes)
        forward(floats2(table, LINES.mlp), n_in, sizes[1], sizes[2], n_classes, vector, hidden, inner, out)
        softmax_into(out, n_classes, voices[at[MLP]])
    if at[LINEAR] >= 0:
        linear_forward(floats2(table, LINES.linear), n_in, n_classes, vector, out)
        softmax_into(out, n_classes, voices[at[LINEAR]])
    if at[NEIGHBOURS] >= 0:
        _ask_neighbours(table, seen_rows, vector, n_classes, scratch[0], voices[at[NEIGHBOURS]])
    weights, routed = floats1(table, LINES.voice_weights), at[ROUTER] >= 0
    if routed:
        sizes, logits = ints1(table, LINES.router_sizes), floats1(table, LINES.logits)
        router = floats2(table, LINES.router)
        forward(router, n_in, sizes[1], sizes[2], len(weights), vector, hidden, inner, logits)
        softmax_into(logits, len(weights), weights)
    order, sums = ints1(table, LINES.class_order), floats2(table, LINES.voice_sums)
    return _answer(voices, n_classes, order, routed, sums, weights, floats1(table, LINES.proba))


@kernel
def _answer(voices, n_classes, order, routed, sums, weights, proba):
    """Weigh the voices: `weights` holds the router's part, then the shares. Return the answer's place.

    Of equals the first in the `order` of labels is the answer.
    """
    total, mass, best = 0.0, 0.0, order[0]
    for v in range(len(weights)):
        odds = _odds(sums, v)
        weights[v] = odds**2 * weights[v] if routed else odds**3
        total += weights[v]
    for c in range(n_classes):
        proba[c] = 0.0
        for v in range(len(weights)):
            proba[c] += weights[v] * voices[v, c]
        mass += proba[c]
    for c in range(n_classes):
        proba[c] /= mass
    for place in range(n_classes):
        if proba[order[place]] > proba[best]:
            best = order[place]
    for v in range(len(weights)):
        weights[v] /= total
    return best


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


@part
def _learn_trees(y, w, draws, n_classes, table):
    f, short = open_forest(table), ints1(table, LINES.short)
    found, scores = ints2(table, LINES.found), floats2(table, LINES.scores)
    numbers, codes = floats1(table, LINES.bounded), ints1(table, LINES.codes)
    wanted = learn_trees(f, found, scores, numbers, codes, n_classes, y, w, draws, short)
    if wanted == 0 and (f.free_slots[0] < len(short) or f.free_nodes[0] < len(short)):
        wanted = len(short)
    return wanted


@entry
def learn(y, w, draws, n_classes, waiting, seen_rows, count, table):
    """Let everything but the networks learn a row; return how many leaves are wanted by splits without room.

    `waiting` is the row's place among those that wait for the networks' step (-1 for none), `seen_rows` how
    many rows the ring has seen (-1 without one), `count` the row's number, from 1. Line `short` holds the
    nodes whose splits wait for room.
    """
    wanted = _learn_trees(y, w, draws, n_classes, table)
    voices, wrong, vector = (
        floats2(table, LINES.voices),
        floats1(table, LINES.voice_wrong),
        floats1(table, LINES.vector),
    )
    weights, chosen, first = floats1(table, LINES.voice_weights), ints1(table, LINES.chosen), 0
    for v in range(len(weights)):
        if weights[v] > weights[first]:
            first = v
    chosen[first] += 1
    _judge(voices, n_classes, y, w, floats2(table, LINES.voice_sums), wrong)
    tree_wrong = floats1(table, LINES.tree_wrong)
    _judge(floats2(table, LINES.tree_proba), n_classes, y, w, floats2(table, LINES.tree_sums), tree_wrong)
    watch_rows, watch_errors = floats1(table, LINES.watch_rows), floats1(table, LINES.watch_errors)
    for e in range(len(tree_wrong)):
        watch_rows[e] += 1.0
        watch_errors[e] += tree_wrong[e]
    if waiting >= 0:
        ints1(table, LINES.pending_labels)[waiting] = y
        floats1(table, LINES.pending_weights)[waiting] = w
        pending = floats2(table, LINES.pending)
        for d in range(len(vector)):
            pending[waiting, d] = vector[d]
        _mask(voices, wrong, y, floats2(table, LINES.pending_masks)[waiting])
    if seen_rows >= 0:
        _learn_neighbours(table, seen_rows, vector, n_classes, y, w)
    scaled = floats1(table, LINES.scaled)
    if len(scaled):
        settle(
            floats1(table, LINES.raw),
            floats1(table, LINES.mean),
            floats1(table, LINES.squares),
            scaled,
            count,
        )
    return wanted


@kernel
def _mask(voices, wrong, y, mask):
    """Write which voices were right [V]; if none was, the one that gave the label most."""
    best, some = 0, False
    for v in range(len(wrong)):
        mask[v] = 1.0 - wrong[v]
        some |= wrong[v] == 0.0
        if voices[v, y] > voices[best, y]:
            best = v
    if not some:
        mask[best] = 1.0


@entry
def train(n_classes, mlp_steps, linear_steps, router_steps, table):
    """Let the networks take the steps of these numbers, from 1; 0 for a network that is not there."""
    x, labels = floats2(table, LINES.pending), ints1(table, LINES.pending_labels)
    weights, masks = floats1(table, LINES.pending_weights), floats2(table, LINES.pending_masks)
    n_in, rates = x.shape[1], floats1(table, LINES.rates)
    if mlp_steps > 0:
        s, values = ints1(table, LINES.mlp_sizes), floats2(table, LINES.mlp)
        step(values, n_in, s[1], s[2], n_classes, x, labels, weights, masks, False, rates[0], mlp_steps)
    if linear_steps > 0:
        values = floats2(table, LINES.linear)
        linear_step(values, n_in, n_classes, x, labels, weights, masks, rates[1], linear_steps)
    if router_steps > 0:
        s, values = ints1(table, LINES.router_sizes), floats2(table, LINES.router)
        step(
            values, n_in, s[1], s[2], masks.shape[1], x, labels, weights, masks, True, rates[2], router_steps
        )


@entry
def split_again(tree, node, n_classes, table):
    """Look for the split of a leaf again, after room was made; return how many leaves it lacks."""
    return split(open_forest(table), tree, node, n_classes)


@entry
def renew_tree(tree, table):
    """Put an empty tree in the place of one."""
    replace_tree(open_forest(table), tree)


@entry
def watch(delta, table):
    """Write into line `alarms` whose errors have risen, and return how many: `ErrorWatch.update`."""
    rows, errors = floats1(table, LINES.watch_rows), floats1(table, LINES.watch_errors)
    best_rows, best_errors = floats1(table, LINES.best_rows), floats1(table, LINES.best_errors)
    alarms = ints1(table, LINES.alarms)
    single, double, count = math.log(1.0 / delta), math.log(2.0 / delta), 0
    for e in range(len(rows)):
        alarms[e] = 0
        mean, bound = errors[e] / rows[e], math.sqrt(single / (2.0 * rows[e]))
        safe = max(best_rows[e], 1.0)
        best = best_errors[e] / safe
        if best_rows[e] == 0.0 or mean + bound <= best + math.sqrt(single / (2.0 * safe)):
            best_rows[e], best_errors[e] = rows[e], errors[e]
        else:
            gap = max(1.0 / best_rows[e] - 1.0 / rows[e], 0.0)
            if mean - best >= math.sqrt(0.5 * gap * double):
                alarms[e] = 1
                count += 1
    return count
