"""The labels that a classifier has met, as class numbers in order of appearance.

Statistics are kept per class, so there is a limit: a stream with more labels than `MOST_LABELS` has numbers
to predict, or identifiers.
"""

from collections.abc import Hashable

import numpy as np

from moe_adapt.drift.hoeffding.encoding import LARGEST, ordered, shown
from moe_adapt.errors import UserError

__all__ = ["MOST_LABELS", "LabelTable", "check_weight"]

MOST_LABELS = 10_000


def check_weight(w: float) -> None:
    """Raise a `UserError` unless `w` is a number from 0 to `LARGEST`."""
    if not 0 <= w <= LARGEST:
        raise UserError(f"the weight of a row is a number from 0 to {LARGEST:.0e}, got {shown(w)}.")


class LabelTable:
    """Labels and their numbers; numbers never change."""

    def __init__(self) -> None:
        self.labels: list[Hashable] = []
        self.number: dict[Hashable, int] = {}
        self._sorted: list[int] | None = []

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def sorted(self) -> list[int]:
        """Class numbers in the order of labels."""
        if self._sorted is None:
            self._sorted = list(ordered(self.number).values())
        return self._sorted

    @property
    def rank(self) -> list[int]:
        """Place of each class in the order of labels."""
        found = [0] * len(self.labels)
        for place, number in enumerate(self.sorted):
            found[number] = place
        return found

    def check(self, label: Hashable) -> None:
        """Raise if a label cannot be learned; nothing is added.

        Raises:
            UserError: If it is missing, no label at all, or one too many.
        """
        try:
            known = label in self.number
        except TypeError:
            raise UserError(
                f"a label is text, a number or a truth value, not a {type(label).__name__}."
            ) from None
        if known:
            return
        if label is None or label != label:
            raise UserError("the label is missing; leave rows without a label out of learning.")
        if len(self.labels) >= MOST_LABELS:
            raise UserError(
                f"more than {MOST_LABELS:,} different labels: "
                "is the label an identifier, or a number to predict?"
            )

    def learn(self, label: Hashable) -> int:
        """Return the number of a label, a new one if it is new."""
        found = self.number.get(label)
        if found is not None:
            return found
        self.number[label] = len(self.labels)
        self.labels.append(label)
        self._sorted = None
        return len(self.labels) - 1

    def named(self, proba: np.ndarray) -> dict[Hashable, float]:
        """Return probabilities [C] by label, in the order of labels."""
        values = proba.tolist()
        return {self.labels[c]: values[c] for c in self.sorted}

    def best(self, proba: np.ndarray) -> Hashable | None:
        """Return the label with the most of probabilities [C], the first of equals in the order of labels."""
        if not len(proba):
            return None
        top = int(proba.argmax())
        if np.count_nonzero(proba == proba[top]) > 1:
            top = max(self.sorted, key=proba.tolist().__getitem__)
        return self.labels[top]
