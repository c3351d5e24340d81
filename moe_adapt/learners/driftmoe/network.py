r"""A small network that learns online, in numpy: the router, and the neural member of the pool.

Linear, ReLU, dropout, Linear, ReLU, Linear, as in DriftMoE's router (arXiv 2507.18464): `hidden` and `hidden
/ 2` units, Xavier-uniform weights, zero biases, Adam without decay. The loss is the mean over rows and
outputs of the binary cross-entropy with logits (targets in [0, 1] per output), or the cross-entropy of a
softmax.

One row costs some ten microseconds this way, half of what a torch module costs, and a buffer of rows is one
batched step, so no graph is kept per row. Inputs and outputs may be added; what is there keeps its weights
and moments.
"""

from typing import Any

import numpy as np

__all__ = ["OnlineNetwork", "softmax"]

_BETAS = (0.9, 0.999)
_EPS = 1e-8


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
        self.weights = [self._xavier(*size) for size in sizes]
        self.biases = [np.zeros(size[1], dtype=np.float32) for size in sizes]
        parameters = [*self.weights, *self.biases]
        self.first = [np.zeros_like(p) for p in parameters]
        self.second = [np.zeros_like(p) for p in parameters]
        self.steps = 0

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
        more_in, more_out = n_inputs - self.n_inputs, n_outputs - self.n_outputs
        if more_in > 0:
            hidden = self.weights[0].shape[1]
            self._extend(0, self._xavier(n_inputs, hidden, (more_in, hidden)), axis=0)
        if more_out > 0:
            units = self.weights[2].shape[0]
            self._extend(2, self._xavier(units, n_outputs, (units, more_out)), axis=1)
            self.biases[2] = np.concatenate([self.biases[2], np.zeros(more_out, dtype=np.float32)])
            for moments in (self.first, self.second):
                moments[5] = np.concatenate([moments[5], np.zeros(more_out, dtype=np.float32)])

    def _extend(self, layer: int, fresh: np.ndarray, axis: int) -> None:
        self.weights[layer] = np.concatenate([self.weights[layer], fresh], axis=axis)
        for moments in (self.first, self.second):
            moments[layer] = np.concatenate([moments[layer], np.zeros_like(fresh)], axis=axis)

    def forward(self, x: np.ndarray) -> np.ndarray:
        """Return the outputs [..., outputs] for inputs [..., inputs], without dropout."""
        hidden = np.maximum(x @ self.weights[0] + self.biases[0], 0.0)
        hidden = np.maximum(hidden @ self.weights[1] + self.biases[1], 0.0)
        return hidden @ self.weights[2] + self.biases[2]

    def step(self, x: np.ndarray, target: np.ndarray) -> None:
        """Take one step of Adam.

        Args:
            x: Inputs [B, inputs].
            target: Targets [B, outputs].
        """
        w1, w2, w3 = self.weights
        one = np.maximum(x @ w1 + self.biases[0], 0.0)
        kept = None
        if self.dropout > 0:
            kept = (self.rng.random(one.shape, dtype=np.float32) >= self.dropout) / np.float32(
                1 - self.dropout
            )
            one = one * kept
        two = np.maximum(one @ w2 + self.biases[1], 0.0)
        logits = two @ w3 + self.biases[2]
        if self.loss == "bce":
            error = (1.0 / (1.0 + np.exp(-np.clip(logits, -60, 60))) - target) / logits.size
        else:
            shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
            error = (shifted / shifted.sum(axis=1, keepdims=True) - target) / len(x)
        error = error.astype(np.float32)
        back_two = (error @ w3.T) * (two > 0)
        back_one = back_two @ w2.T
        if kept is not None:
            back_one = back_one * kept
        back_one = back_one * (one > 0)
        self._adam(
            [x.T @ back_one, one.T @ back_two, two.T @ error, back_one.sum(0), back_two.sum(0), error.sum(0)]
        )

    def _adam(self, gradients: list[np.ndarray]) -> None:
        self.steps += 1
        b1, b2 = _BETAS
        scale = np.float32(self.lr * (1 - b2**self.steps) ** 0.5 / (1 - b1**self.steps))
        eps = np.float32(_EPS * (1 - b2**self.steps) ** 0.5)
        parameters = [*self.weights, *self.biases]
        for p, g, m, v in zip(parameters, gradients, self.first, self.second, strict=True):
            m *= np.float32(b1)
            m += np.float32(1 - b1) * g
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
        for kind in ("weights", "biases", "first", "second"):
            count = len(getattr(self, kind))
            setattr(self, kind, [np.array(arrays[f"{kind}.{place}"]) for place in range(count)])
        self.steps = steps


def softmax(values: np.ndarray) -> np.ndarray:
    """Return the softmax of a vector."""
    found = np.exp(values - values.max())
    return found / found.sum()
