"""Forward pass and step of `moe_adapt.drift.committee.layers.Layers` in compiled code, on the same arrays.

Weights are walked row by row, so that the inner loops run over units that lie side by side. A step computes
all errors first, then the gradients, which go into Adam at once and are not kept. It takes the four rows
that wait (`STEP_EVERY`) together, so that every weight is read once. Adam's direction is divided in single
precision, on both paths: that is half of the time of a step.
"""

import math

import numpy as np

from moe_adapt.drift.committee.layers import BETAS, EPSILON, FADED
from moe_adapt.drift.compiled.jit import kernel, quick_kernel

__all__ = ["forward", "linear_forward", "linear_step", "softmax_into", "step"]

_ONE, _TWO = BETAS
_MOST = 60.0


@kernel
def _row(values, at, i, n_out):
    """Return the weights [out] of one input of the layer that begins at `at`."""
    return values[at + i * n_out : at + (i + 1) * n_out]


@quick_kernel
def _affine(values, at, n_in, n_out, x, out):
    """Write x W + b [out]; weights [in, out] and biases begin at `at`. Return where the next layer begins."""
    biases = values[at + n_in * n_out : at + (n_in + 1) * n_out]
    for j in range(n_out):
        out[j] = biases[j]
    whole = n_in - n_in % 4
    for i in range(0, whole, 4):
        a, b, c, d = x[i], x[i + 1], x[i + 2], x[i + 3]
        first, second = _row(values, at, i, n_out), _row(values, at, i + 1, n_out)
        third, fourth = _row(values, at, i + 2, n_out), _row(values, at, i + 3, n_out)
        for j in range(n_out):
            out[j] += a * first[j] + b * second[j] + c * third[j] + d * fourth[j]
    for i in range(whole, n_in):
        row = _row(values, at, i, n_out)
        for j in range(n_out):
            out[j] += x[i] * row[j]
    return at + (n_in + 1) * n_out


@kernel
def forward(values, n_in, one, two, n_out, x, hidden, inner, out):
    """Write the logits [out] of a network with hidden layers of `one` and `two` units."""
    parameters = values[0]
    at = _affine(parameters, 0, n_in, one, x, hidden)
    for j in range(one):
        hidden[j] = max(hidden[j], 0.0)
    at = _affine(parameters, at, one, two, hidden, inner)
    for j in range(two):
        inner[j] = max(inner[j], 0.0)
    _affine(parameters, at, two, n_out, inner, out)


@kernel
def linear_forward(values, n_in, n_out, x, out):
    """Write the logits [out] of a linear model."""
    _affine(values[0], 0, n_in, n_out, x, out)


@kernel
def softmax_into(logits, n, out):
    """Write the softmax of the first `n` logits."""
    top = -np.inf
    for k in range(n):
        top = max(top, logits[k])
    total = 0.0
    for k in range(n):
        out[k] = math.exp(logits[k] - top)
        total += out[k]
    for k in range(n):
        out[k] /= total


@kernel
def _errors(logits, n_out, labels, weights, masks, bce, out):
    """Turn logits [B, out] into the gradient of the loss with respect to them."""
    rows = len(labels)
    for b in range(rows):
        if bce:
            for k in range(n_out):
                z = min(max(logits[b, k], -_MOST), _MOST)
                error = 1.0 / (1.0 + math.exp(-z)) - masks[b, k]
                out[b, k] = error * (weights[b] / (rows * n_out))
        else:
            softmax_into(logits[b], n_out, out[b])
            out[b, labels[b]] -= 1.0
            for k in range(n_out):
                out[b, k] *= weights[b] / rows


@quick_kernel
def _back(values, at, n_in, n_out, error, seen, out):
    """Write the errors [4, in] of a layer's inputs, 0 where the unit was off."""
    one, two, three, four = error[0], error[1], error[2], error[3]
    for i in range(n_in):
        row = _row(values, at, i, n_out)
        a, b, c, d = 0.0, 0.0, 0.0, 0.0
        for j in range(n_out):
            a += one[j] * row[j]
            b += two[j] * row[j]
            c += three[j] * row[j]
            d += four[j] * row[j]
        out[0, i] = a if seen[0, i] > 0.0 else 0.0
        out[1, i] = b if seen[1, i] > 0.0 else 0.0
        out[2, i] = c if seen[2, i] > 0.0 else 0.0
        out[3, i] = d if seen[3, i] > 0.0 else 0.0


@quick_kernel
def _learn_row(values, at, size, a, b, c, d, error, scale, short):
    """Let the weights of one input, which was `a` to `d` in the four rows, take their step."""
    parameters = values[0, at : at + size]
    first = values[1, at : at + size]
    second = values[2, at : at + size]
    one, two, three, four = error[0], error[1], error[2], error[3]
    for j in range(size):
        g = a * one[j] + b * two[j] + c * three[j] + d * four[j]
        m = first[j] * _ONE + (1.0 - _ONE) * g
        v = second[j] * _TWO + (1.0 - _TWO) * g * g
        m = m if abs(m) > FADED else 0.0
        v = v if v > FADED else 0.0
        first[j], second[j] = m, v
        parameters[j] -= scale * np.float64(np.float32(m) / (np.sqrt(np.float32(v)) + short))


@kernel
def _learn_layer(values, at, n_in, n_out, seen, error, scale, eps):
    """Let one layer take its step: weights row by row, then biases."""
    short = np.float32(eps)
    for i in range(n_in):
        a, b, c, d = seen[0, i], seen[1, i], seen[2, i], seen[3, i]
        _learn_row(values, at + i * n_out, n_out, a, b, c, d, error, scale, short)
    _learn_row(values, at + n_in * n_out, n_out, 1.0, 1.0, 1.0, 1.0, error, scale, short)


@kernel
def _scales(lr, steps):
    root = math.sqrt(1.0 - _TWO**steps)
    return lr * root / (1.0 - _ONE**steps), EPSILON * root


@kernel
def step(values, n_in, one, two, n_out, x, labels, weights, masks, bce, lr, steps):
    """Take one step of Adam on rows [B, in], the `steps`-th."""
    rows, parameters = len(x), values[0]
    hidden, inner = np.empty((rows, one)), np.empty((rows, two))
    logits, error = np.empty((rows, n_out)), np.empty((rows, n_out))
    for b in range(rows):
        forward(values, n_in, one, two, n_out, x[b], hidden[b], inner[b], logits[b])
    _errors(logits, n_out, labels, weights, masks, bce, error)
    second = (n_in + 1) * one
    third = second + (one + 1) * two
    back_inner, back_hidden = np.empty((rows, two)), np.empty((rows, one))
    _back(parameters, third, two, n_out, error, inner, back_inner)
    _back(parameters, second, one, two, back_inner, hidden, back_hidden)
    scale, eps = _scales(lr, steps)
    _learn_layer(values, 0, n_in, one, x, back_hidden, scale, eps)
    _learn_layer(values, second, one, two, hidden, back_inner, scale, eps)
    _learn_layer(values, third, two, n_out, inner, error, scale, eps)


@kernel
def linear_step(values, n_in, n_out, x, labels, weights, masks, lr, steps):
    """Take one step of Adam with a linear model."""
    rows = len(x)
    logits, error = np.empty((rows, n_out)), np.empty((rows, n_out))
    for b in range(rows):
        _affine(values[0], 0, n_in, n_out, x[b], logits[b])
    _errors(logits, n_out, labels, weights, masks, False, error)
    scale, eps = _scales(lr, steps)
    _learn_layer(values, 0, n_in, n_out, x, error, scale, eps)
