r"""How right a voice was lately, and what its word is worth for it.

Decayed sums of rows and of right answers, \(W \leftarrow d W + w\), \(S \leftarrow d S +
w\,[\text{right}]\) with \(d = 2^{-1/300}\) for a row of weight \(w\): the accuracy \(a = S / W\) of the
last few hundred rows. It counts as odds, \(a / (1 - a + 0.001)\), so that the best of good voices outweighs
the others clearly.
"""

import numpy as np

__all__ = ["DECAY", "Reliability", "odds_of"]

DECAY = 0.5 ** (1.0 / 300.0)
_START = (1.0, 2.0)


def odds_of(sums: np.ndarray) -> np.ndarray:
    """Return the odds [n] of decayed sums [2, n] of right answers and rows."""
    share = sums[0] / sums[1]
    return share / (1.0 - share + 0.001)


class Reliability:
    """Decayed sums for some voices.

    Args:
        count: How many voices.

    Attributes:
        sums: Right answers and rows [2, count].
    """

    def __init__(self, count: int) -> None:
        self.sums = np.empty((2, count))
        self.sums[0], self.sums[1] = _START

    @property
    def odds(self) -> np.ndarray:
        """What the voices' words are worth [count]."""
        return odds_of(self.sums)

    @property
    def accuracy(self) -> np.ndarray:
        """Accuracy of the voices over the last few hundred rows [count]."""
        return self.sums[0] / self.sums[1]

    def update(self, right: np.ndarray, w: float) -> None:
        """Count a row.

        Args:
            right: Which voices were right [count].
            w: Weight of the row.
        """
        self.sums *= DECAY
        self.sums[0] += w * right
        self.sums[1] += w

    def forget(self, voice: int) -> None:
        """Start afresh with one voice."""
        self.sums[:, voice] = _START
