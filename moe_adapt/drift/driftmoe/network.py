r"""A small network that learns online, in numpy: the router, and the neural member of the pool.

Linear, ReLU, dropout, Linear, ReLU, Linear, as in DriftMoE's router (arXiv 2507.18464): `hidden` and `hidden
/ 2` units, Xavier-uniform weights, zero biases, Adam without decay. The loss is the mean over rows and
outputs of the binary cross-entropy with logits (targets in [0, 1] per output), or the cross-entropy of a
softmax.

One row costs some ten microseconds this way, half of what a torch module costs, and a buffer of rows is one
batched step, so no graph is kept per row. Inputs and outputs may be added; what is there keeps its weights
and moments.
"""

import math
from typing import Any

import numpy as np

__all__ = ["OnlineNetwork", "softmax"]

_BETAS = (0.9, 0.999)
_EPS = 1e-8
#: As arrays: numpy converts a Python number anew in every operation. `_MOST` keeps exp from overflowing.
_ZERO, _MOST = np.array(0.0, dtype=np.float32), np.array(60.0, dtype=np.float32)


class OnlineNetwork:
    """Two hidden layers and Adam.

    Args:
        hidden: Units of the first hidden layer; the second has half as many.
        dropout: Share of first-layer units that an update leaves out; predictions use all.
        lr: Learning rate.
        loss: ``bce`` or ``softmax``.
        rng: Where weights and dropout are drawn from.
    """

    def __init__(self, hidden: int, dropout: float, lr: float, loss: str, rng: np.random.Generator) -> None:
        self.dropout, self.lr, self.loss, self.rng = dropout, lr, loss, rng
        sizes = [(0, hidden), (hidden, max(hidden // 2, 1)), (max(hidden // 2, 1), 0)]
        parameters = [self._xavier(*size) for size in sizes]
        parameters += [np.zeros(size[1], dtype=np.float32) for size in sizes]
        self.steps = 0
        self._pack(parameters, _zeros_like(parameters), _zeros_like(parameters))

    def _pack(self, *kinds: list[np.ndarray]) -> None:
        """Lay parameters and their moments out in one vector each, of which the named arrays are views."""
        self._vectors = [np.concatenate([part.ravel() for part in parts]) for parts in kinds]
        self._vectors += [np.empty_like(self._vectors[0]) for _ in range(2)]
        shapes = [part.shape for part in kinds[0]]
        parameters, self.first, self.second, self._gradients = (
            _views(vector, shapes) for vector in self._vectors[:4]
        )
        self.weights, self.biases = parameters[:3], parameters[3:]

    def __getstate__(self) -> dict[str, Any]:
        derived = ("_vectors", "_gradients")  # views would be kept as copies that share nothing
        return {name: value for name, value in self.__dict__.items() if name not in derived}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._pack([*self.weights, *self.biases], self.first, self.second)

    def _xavier(self, fan_in: int, fan_out: int, shape: tuple[int, int] | None = None) -> np.ndarray:
        bound = (6.0 / max(fan_in + fan_out, 1)) ** 0.5
        return self.rng.uniform(-bound, bound, shape or (fan_in, fan_out)).astype(np.float32)

    @property
    def n_inputs(self) -> int:
        """Inputs that there are weights for."""
        return self.weights[0].shape[0]

    @property
    def n_outputs(self) -> int:
        """Outputs."""
        return self.weights[2].shape[1]

    def grow(self, n_inputs: int, n_outputs: int) -> None:
        """Add inputs and outputs; what is there stays."""
        kinds = [[*self.weights, *self.biases], self.first, self.second]
        more_in, more_out = n_inputs - self.n_inputs, n_outputs - self.n_outputs
        if more_in > 0:
            hidden = self.weights[0].shape[1]
            _extend(kinds, 0, self._xavier(n_inputs, hidden, (more_in, hidden)), axis=0)
        if more_out > 0:
            units = self.weights[2].shape[0]
            _extend(kinds, 2, self._xavier(units, n_outputs, (units, more_out)), axis=1)
            _extend(kinds, 5, np.zeros(more_out, dtype=np.float32), axis=0)
        if more_in > 0 or more_out > 0:
            self._pack(*kinds)

    def forward(self, x: np.ndarray) -> np.ndarray:
        """Return the outputs [..., outputs] for inputs [..., inputs], without dropout."""
        (w1, w2, w3), (b1, b2, b3) = self.weights, self.biases
        hidden = x.dot(w1)
        hidden += b1
        np.maximum(hidden, _ZERO, out=hidden)
        hidden = hidden.dot(w2)
        hidden += b2
        np.maximum(hidden, _ZERO, out=hidden)
        found = hidden.dot(w3)
        found += b3
        return found

    def step(self, x: np.ndarray, target: np.ndarray) -> None:
        """Take one step of Adam.

        Args:
            x: Inputs [B, inputs].
            target: Targets [B, outputs].
        """
        w1, w2, w3 = self.weights
        one = np.maximum(x @ w1 + self.biases[0], _ZERO)
        kept = None
        if self.dropout > 0:
            kept = (self.rng.random(one.shape, dtype=np.float32) >= self.dropout) / np.float32(
                1 - self.dropout
            )
            one *= kept
        two = np.maximum(one @ w2 + self.biases[1], _ZERO)
        logits = two @ w3 + self.biases[2]
        if self.loss == "bce":
            np.minimum(np.negative(logits, out=logits), _MOST, out=logits)
            np.exp(np.maximum(logits, -_MOST, out=logits), out=logits)
            error = np.divide(1.0, logits + 1.0)
            error -= target
            error /= logits.size
        else:
            error = np.exp(logits - np.maximum.reduce(logits, axis=1, keepdims=True))
            error /= np.add.reduce(error, axis=1, keepdims=True)
            error -= target
            error /= len(x)
        back_two = error @ w3.T
        back_two *= two > 0
        back_one = back_two @ w2.T
        if kept is not None:
            back_one *= kept
        back_one *= one > 0
        for place, (inputs, back) in enumerate(((x, back_one), (one, back_two), (two, error))):
            np.dot(inputs.T, back, out=self._gradients[place])
            np.add.reduce(back, axis=0, out=self._gradients[3 + place])
        self._adam()

    def _adam(self) -> None:
        self.steps += 1
        b1, b2 = _BETAS
        scale = np.float32(self.lr * (1 - b2**self.steps) ** 0.5 / (1 - b1**self.steps))
        eps = np.float32(_EPS * (1 - b2**self.steps) ** 0.5)
        p, m, v, g, scratch = self._vectors
        m *= np.float32(b1)
        m += np.multiply(g, np.float32(1 - b1), out=scratch)
        g *= g
        g *= np.float32(1 - b2)
        v *= np.float32(b2)
        v += g
        np.sqrt(v, out=g)
        g += eps
        np.divide(m, g, out=g)
        g *= scale
        p -= g

    def arrays(self) -> dict[str, np.ndarray]:
        """Return weights, biases and moments by name."""
        named: dict[str, Any] = {}
        for kind in ("weights", "biases", "first", "second"):
            named |= {f"{kind}.{place}": values for place, values in enumerate(getattr(self, kind))}
        return named

    def restore(self, arrays: dict[str, np.ndarray], steps: int) -> None:
        """Take over what `arrays` returned."""
        parts = {
            kind: [arrays[f"{kind}.{place}"] for place in range(len(getattr(self, kind)))]
            for kind in ("weights", "biases", "first", "second")
        }
        self._pack([*parts["weights"], *parts["biases"]], parts["first"], parts["second"])
        self.steps = steps


def _zeros_like(parts: list[np.ndarray]) -> list[np.ndarray]:
    return [np.zeros_like(part) for part in parts]


def _views(vector: np.ndarray, shapes: list[tuple[int, ...]]) -> list[np.ndarray]:
    ends = np.cumsum([math.prod(shape) for shape in shapes])
    return [part.reshape(shape) for part, shape in zip(np.split(vector, ends[:-1]), shapes, strict=True)]


def _extend(kinds: list[list[np.ndarray]], place: int, fresh: np.ndarray, axis: int) -> None:
    """Append fresh parameters to one array, and zeros to its moments."""
    for kind, more in zip(kinds, (fresh, *_zeros_like([fresh, fresh])), strict=True):
        kind[place] = np.concatenate([kind[place], more], axis=axis)


def softmax(values: np.ndarray) -> np.ndarray:
    """Return the softmax of a vector."""
    found = np.exp(values - np.maximum.reduce(values))
    found /= np.add.reduce(found)
    return found
