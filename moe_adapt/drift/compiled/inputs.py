"""What the networks see of a row, and the nearest rows: `NetworkInputs` and `Neighbours` in compiled code."""

import math

import numpy as np

from moe_adapt.drift.committee.neighbours import FLOOR, NEAR, NEAREST, WINDOW
from moe_adapt.drift.compiled.jit import kernel
from moe_adapt.drift.parts.inputs import FAR, MOST, RAW_MOST, SETTLED

__all__ = ["encode", "nearest_proba", "settle"]


@kernel
def encode(
    numbers, codes, places, code_place, code_value, mean, squares, scaled, count, bounded, raw, vector
):
    """Write a row's bounded numbers [F], unscaled inputs [D] and scaled inputs [D].

    Args:
        numbers: Of the row [F], NaN where missing.
        codes: Of the row [G].
        places: Input of every numeric column [F].
        code_place: Input of every nominal value [G, V].
        code_value: What that input holds then [G, V].
        mean: Of the inputs [D].
        squares: Sum of squared deviations [D].
        scaled: 1 for a number, 0 for an indicator [D]; empty if nothing is scaled.
        count: Rows so far.
        bounded: Output.
        raw: Output.
        vector: Output.
    """
    scale = len(scaled) > 0
    for d in range(len(raw)):
        raw[d] = 0.0
    for g in range(len(codes)):
        if codes[g] >= 0:
            raw[code_place[g, codes[g]]] = code_value[g, codes[g]]
    for f in range(len(numbers)):
        x, d = numbers[f], places[f]
        if scale and count > SETTLED and x == x:
            reach = FAR * math.sqrt(squares[d] / (count - 1))
            if reach > 0.0:
                x = min(max(x, mean[d] - reach), mean[d] + reach)
        bounded[f] = x
        raw[d] = x
    for d in range(len(raw)):
        x = raw[d]
        if scale:
            deviation = math.sqrt(squares[d] / max(count - 1, 1))
            inverse = 1.0 / deviation if deviation > 0.0 else 1.0 - scaled[d]
            x = max(min((x - mean[d]) * inverse, MOST), -MOST) if x == x else 0.0
        else:
            x = max(min(x, RAW_MOST), -RAW_MOST) if x == x else 0.0
        vector[d] = x


@kernel
def settle(raw, mean, squares, scaled, count):
    """Let a row move mean and deviation; it is the `count`-th."""
    for d in range(len(raw)):
        delta = raw[d] - mean[d]
        if delta != delta:
            delta = 0.0
        if count > SETTLED:
            reach = FAR * math.sqrt(squares[d] / (count - 1))
            if reach > 0.0:
                delta = max(min(delta, reach), -reach)
        delta *= scaled[d]
        mean[d] += delta / count
        squares[d] += delta * delta * ((count - 1) / count)


@kernel
def _squares(rows, vector, count, out):
    """Write the squared distances of the first `count` rows, added up column by column as in numpy."""
    for j in range(count):
        out[j] = 0.0
    n = len(vector)
    whole = n - n % 4
    for d in range(0, whole, 4):
        one, two, three, four = rows[d], rows[d + 1], rows[d + 2], rows[d + 3]
        a, b, c, e = vector[d], vector[d + 1], vector[d + 2], vector[d + 3]
        for j in range(count):
            total = out[j] + (one[j] - a) * (one[j] - a)
            total += (two[j] - b) * (two[j] - b)
            total += (three[j] - c) * (three[j] - c)
            out[j] = total + (four[j] - e) * (four[j] - e)
    for d in range(whole, n):
        row, x = rows[d], vector[d]
        for j in range(count):
            gap = row[j] - x
            out[j] += gap * gap


@kernel
def nearest_proba(rows, labels, weights, seen, vector, n_classes, squares, out):
    """Write the probabilities [C] of the nearest rows of the ring."""
    count = min(seen, WINDOW)
    for c in range(n_classes):
        out[c] = FLOOR
    if count > 0:
        _squares(rows, vector, count, squares)
        near = np.empty(NEAREST, dtype=np.int64)
        kept, limit = 0, np.inf
        for j in range(count):
            if squares[j] < limit or kept < NEAREST:
                at = kept if kept < NEAREST else NEAREST - 1
                while at > 0 and squares[j] < squares[near[at - 1]]:
                    near[at] = near[at - 1]
                    at -= 1
                near[at] = j
                kept = min(kept + 1, NEAREST)
                if kept == NEAREST:
                    limit = squares[near[NEAREST - 1]]
        for place in range(kept):  # in the order of the ring, as the plain path adds up
            for later in range(place + 1, kept):
                if near[later] < near[place]:
                    near[place], near[later] = near[later], near[place]
            j = near[place]
            out[labels[j]] += weights[j] / (math.sqrt(squares[j]) + NEAR)
    total = 0.0
    for c in range(n_classes):
        total += out[c]
    for c in range(n_classes):
        out[c] /= total
