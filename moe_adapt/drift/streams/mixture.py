r"""One concept gives way to another: MOA's drift mixture.

Row \(t = 1, 2, \ldots\) of the mixture comes from the new concept with probability
\(1 / (1 + e^{-4 (t - p) / w})\) for position \(p\) and width \(w\). The exponent is clipped, so that narrow
drifts in long streams do not overflow (River's `ConceptDriftStream` does). Each concept advances only when it
is drawn; mixtures nest to the right with *relative* positions.
"""

import math
from collections.abc import Iterator, Sequence

from moe_adapt.drift.streams.base import Concept, Row
from moe_adapt.drift.streams.java_random import JavaRandom

__all__ = ["DriftMixture", "chain"]


class DriftMixture(Concept):
    """Rows of `old`, and later of `new`.

    Args:
        old: The first concept.
        new: The concept that replaces it; both have the same columns.
        position: Row of this mixture at which both are equally likely.
        width: Rows that the change takes: the probability is 0.12 half a width before `position`.
        seed: Seed of the choice between them.
    """

    def __init__(self, old: Concept, new: Concept, position: int, width: int, seed: int = 1) -> None:
        self.old, self.new, self.position, self.width, self.seed = old, new, position, width, seed
        self.features, self.nominal, self.n_classes = old.features, old.nominal, old.n_classes

    def __iter__(self) -> Iterator[Row]:
        random = JavaRandom(self.seed)
        old, new = iter(self.old), iter(self.new)
        count = 0
        while True:
            count += 1
            exponent = -4.0 * (count - self.position) / self.width
            share = 1.0 / (1.0 + math.exp(min(max(exponent, -700.0), 700.0)))
            yield next(old if random.uniform() > share else new)


def chain(concepts: Sequence[Concept], positions: Sequence[int], width: int, seed: int = 1) -> Concept:
    """Return the concepts one after the other.

    Args:
        concepts: One more than positions.
        positions: Absolute rows of the drifts' centres, ascending.
        width: Rows that each drift takes.
        seed: Seed of the choices.
    """
    whole = concepts[-1]
    ends = [*positions]
    starts = [0, *positions[:-1]]
    for old, start, end in zip(reversed(concepts[:-1]), reversed(starts), reversed(ends), strict=True):
        whole = DriftMixture(old, whole, end - start, width, seed)
    return whole
