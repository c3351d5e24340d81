"""What the networks see of a row: `NetworkInputs` in compiled code."""

import math

from moe_adapt.drift.compiled.jit import kernel
from moe_adapt.drift.parts.inputs import FAR, MOST, RAW_MOST, SETTLED

__all__ = ["encode", "settle"]


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
