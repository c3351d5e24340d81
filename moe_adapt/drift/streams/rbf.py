"""MOA's random radial-basis-function generator with moving centroids.

Every class owns some of the centroids. All centroids move a little before every row and bounce off the walls
of the unit cube; a row lies in a random direction from a centroid, at a normally distributed distance.

Reference: Bifet et al., MOA, JMLR 2010. Many papers' "RBF" streams differ in the number of classes: five in
the streams of the adaptive random forest, two in those of DriftMoE's release. Both are offered.
"""

from collections.abc import Iterator

import numpy as np

from moe_adapt.drift.streams.base import Concept, Row
from moe_adapt.drift.streams.java_random import JavaRandom

__all__ = ["RandomRBF"]


class RandomRBF(Concept):
    """Gaussian clouds around moving centroids.

    Args:
        n_classes: Classes.
        speed: Distance that each centroid moves per row; 0 keeps them in place.
        n_features: Columns.
        n_centroids: Centroids.
        model_seed: Seed of centroids and of their directions.
        seed: Seed of the rows.
    """

    def __init__(
        self,
        n_classes: int = 5,
        speed: float = 0.0001,
        n_features: int = 10,
        n_centroids: int = 50,
        model_seed: int = 1,
        seed: int = 1,
    ) -> None:
        self.n_classes, self.speed, self.n_centroids = n_classes, speed, n_centroids
        self.model_seed, self.seed = model_seed, seed
        self.features = tuple(f"att{i}" for i in range(1, n_features + 1))

    def __iter__(self) -> Iterator[Row]:
        centres, labels, deviations, weights = self._centroids()
        motion = self._directions() * self.speed
        bounds = np.cumsum(weights)
        total = float(bounds[-1])
        random = JavaRandom(self.seed)
        while True:
            if self.speed > 0:
                centres += motion
                outside = (centres < 0) | (centres > 1)
                if outside.any():
                    np.clip(centres, 0, 1, out=centres)
                    motion[outside] *= -1
            chosen = int(np.searchsorted(bounds, random.uniform() * total, side="right"))
            direction = np.array([2 * random.uniform() - 1 for _ in self.features])
            radius = random.normal() * deviations[chosen]
            values = centres[chosen] + direction / np.sqrt(direction @ direction) * radius
            yield values.tolist(), labels[chosen]

    def _centroids(self) -> tuple[np.ndarray, list[int], list[float], list[float]]:
        random = JavaRandom(self.model_seed)
        centres, labels, deviations, weights = [], [], [], []
        for _ in range(self.n_centroids):
            centres.append([random.uniform() for _ in self.features])
            labels.append(random.integer(self.n_classes))
            deviations.append(random.uniform())
            weights.append(random.uniform())
        return np.array(centres), labels, deviations, weights

    def _directions(self) -> np.ndarray:
        random = JavaRandom(self.model_seed)
        raw = np.array([[random.uniform() for _ in self.features] for _ in range(self.n_centroids)])
        return raw / np.sqrt((raw**2).sum(axis=1, keepdims=True))
