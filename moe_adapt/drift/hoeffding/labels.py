"""The labels that a classifier has met, as class numbers in order of appearance."""

from collections.abc import Hashable

import numpy as np

from moe_adapt.drift.hoeffding.encoding import ordered

__all__ = ["LabelTable"]


class LabelTable:
    """Labels and their numbers; numbers never change."""

    def __init__(self) -> None:
        self.labels: list[Hashable] = []
        self.number: dict[Hashable, int] = {}
        self.rank: list[int] = []
        self.sorted: list[int] = []

    def __len__(self) -> int:
        return len(self.labels)

    def learn(self, label: Hashable) -> int:
        """Return the number of a label, a new one if it is new."""
        found = self.number.get(label)
        if found is not None:
            return found
        self.number[label] = len(self.labels)
        self.labels.append(label)
        self.sorted = list(ordered(self.number).values())
        self.rank = [0] * len(self.labels)
        for place, number in enumerate(self.sorted):
            self.rank[number] = place
        return len(self.labels) - 1

    def named(self, proba: np.ndarray) -> dict[Hashable, float]:
        """Return probabilities [C] by label, in the order of labels."""
        values = proba.tolist()
        return {self.labels[c]: values[c] for c in self.sorted}
