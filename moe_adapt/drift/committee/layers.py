r"""A small network that learns online, in double precision: linear, or with hidden layers and ReLU.

Parameters, both moments of Adam and the gradient are the four rows of one array, in which layer after layer
has its weights [in, out] and its biases [out]. The compiled row path works on the same array, which is why
this is not the float32 network of DriftMoE's router: with doubles both paths agree to rounding over
thousands of steps. The loss is the cross-entropy of a softmax, or the mean binary cross-entropy of the
outputs, or half of the squared error, each row with its weight, divided by the number of rows.
"""

import numpy as np

__all__ = ["BETAS", "EPSILON", "FADED", "Layers", "softmax"]

BETAS = (0.9, 0.999)
EPSILON = 1e-8
#: Moments below this count as 0: of units that are off they fade for ever, and subnormal numbers are slow.
FADED = 1e-35


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return the softmax over the last axis."""
    found = np.exp(logits - logits.max(axis=-1, keepdims=True))
    found /= found.sum(axis=-1, keepdims=True)
    return found


class Layers:
    """A network and its optimizer.

    Args:
        hidden: Units of the hidden layers; none for a linear model, which starts at zero.
        lr: Learning rate of Adam.
        loss: ``softmax``, ``bce`` or ``squares``.
        rng: Where weights are drawn from (Xavier, uniform).

    Attributes:
        values: Parameters, first moments, second moments, gradient [4, P].
        sizes: Inputs, hidden units, outputs.
        steps: Steps taken.
    """

    def __init__(self, hidden: tuple[int, ...], lr: float, loss: str, rng: np.random.Generator) -> None:
        self.lr, self.loss, self.rng = lr, loss, rng
        self.sizes = (0, *hidden, 0)
        self.steps = 0
        self.values = np.zeros((4, self.n_parameters))
        for weights, _ in self.parts(self.values[0]):
            self._draw(weights, (0, 0))

    @property
    def n_parameters(self) -> int:
        """Weights and biases."""
        return sum((one + 1) * other for one, other in zip(self.sizes, self.sizes[1:], strict=False))

    def parts(self, values: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return views of weights [in, out] and biases [out] per layer, of one row of `values` [P]."""
        found, at = [], 0
        for one, other in zip(self.sizes, self.sizes[1:], strict=False):
            weights = values[at : at + one * other].reshape(one, other)
            at += one * other
            found.append((weights, values[at : at + other]))
            at += other
        return found

    def grow(self, n_inputs: int, n_outputs: int) -> None:
        """Add inputs and outputs; what is there keeps its weights and moments."""
        sizes = (n_inputs, *self.sizes[1:-1], n_outputs)
        if sizes == self.sizes:
            return
        old = [self.parts(row) for row in self.values]
        self.sizes = sizes
        self.values = np.zeros((4, self.n_parameters))
        for row, layers in enumerate(old):
            for new, known in zip(self.parts(self.values[row]), layers, strict=True):
                if row == 0 and len(sizes) > 2:
                    self._draw(new[0], known[0].shape)
                for fresh, kept in zip(new, known, strict=True):
                    fresh[tuple(slice(size) for size in kept.shape)] = kept

    def _draw(self, weights: np.ndarray, known: tuple[int, ...]) -> None:
        if weights.shape != known and weights.size:
            bound = (6.0 / sum(weights.shape)) ** 0.5
            weights[:] = self.rng.uniform(-bound, bound, weights.shape)

    def forward(self, x: np.ndarray) -> np.ndarray:
        """Return the logits [..., outputs] for inputs [..., inputs]."""
        layers = self.parts(self.values[0])
        for weights, biases in layers[:-1]:
            x = np.maximum(x @ weights + biases, 0.0)
        weights, biases = layers[-1]
        return x @ weights + biases

    def step(self, x: np.ndarray, target: np.ndarray, weight: np.ndarray) -> None:
        """Take one step of Adam.

        Args:
            x: Inputs [B, inputs].
            target: Targets [B, outputs], from 0 to 1.
            weight: Of the rows [B].
        """
        layers, gradients = self.parts(self.values[0]), self.parts(self.values[3])
        seen = [x]
        for weights, biases in layers[:-1]:
            seen.append(np.maximum(seen[-1] @ weights + biases, 0.0))
        logits = seen[-1] @ layers[-1][0] + layers[-1][1]
        if self.loss != "bce":
            error = (softmax(logits) if self.loss == "softmax" else logits) - target
            error *= (weight / len(x))[:, None]
        else:
            error = 1.0 / (1.0 + np.exp(-np.clip(logits, -60.0, 60.0))) - target
            error *= (weight / target.size)[:, None]
        for place in range(len(layers) - 1, -1, -1):
            gradients[place][0][:] = seen[place].T @ error
            gradients[place][1][:] = error.sum(axis=0)
            if place:
                error = (error @ layers[place][0].T) * (seen[place] > 0)
        self._adam()

    def _adam(self) -> None:
        self.steps += 1
        one, two = BETAS
        root = (1.0 - two**self.steps) ** 0.5
        scale, eps = self.lr * root / (1.0 - one**self.steps), EPSILON * root
        parameters, first, second, gradient = self.values
        first *= one
        first += (1.0 - one) * gradient
        second *= two
        second += (1.0 - two) * gradient * gradient
        first *= np.abs(first) > FADED
        second *= second > FADED
        short = np.sqrt(second.astype(np.float32)) + np.float32(eps)
        parameters -= scale * (first.astype(np.float32) / short).astype(np.float64)
