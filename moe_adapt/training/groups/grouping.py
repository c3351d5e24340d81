"""Which customer is in which group, as a file that a run can read and people can check."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from moe_adapt.files import write_file
from moe_adapt.training.groups.clusters import LEVEL, agreement, cluster_losses

__all__ = ["GROUPS_FILE", "Grouping"]

GROUPS_FILE = "groups.json"
#: Rousseeuw's limit below which a silhouette speaks for no structure.
_FAINT = 0.25
#: Largest p-value at which groups may be there though they were not found.
_CLOSE = 0.2


@dataclass(frozen=True)
class Grouping:
    """Groups of keys.

    Attributes:
        key: The column whose values are grouped.
        names: The values, sorted.
        labels: Number of each one's group, [T].
        losses: Loss of each expert (column) on each one's rows (row), [T, T].
        silhouettes: Mean silhouette of every number of groups.
        chosen: Whether the number of groups was found, not given.
        adjusted_rand: Agreement with groups that were known, if any were.
        p_value: How often chance gives groups as good; None if it was not asked.
    """

    key: str
    names: list[str]
    labels: list[int]
    losses: list[list[float]]
    silhouettes: dict[int, float]
    chosen: bool = True
    adjusted_rand: float | None = None
    p_value: float | None = None

    @classmethod
    def find(
        cls,
        key: str,
        names: Sequence[str],
        losses: np.ndarray,
        count: int | None = None,
        truth: Mapping[str, str] | None = None,
    ) -> Self:
        """Return the groups that a matrix of losses speaks for.

        Args:
            key: The column whose values are grouped.
            names: The values, in the order of the matrix.
            losses: Loss of each expert (column) on each one's rows (row), [T, T].
            count: Number of groups; None finds it.
            truth: Known group of each value, to compare with.

        Raises:
            UserError: If there are too few values, or no such number of groups.
        """
        found = cluster_losses(losses, count)
        score = None
        if truth is not None:
            known = sorted(set(truth.values()))
            score = agreement(found.labels, np.array([known.index(truth[name]) for name in names]))
        return cls(
            key,
            list(names),
            found.labels.tolist(),
            losses.tolist(),
            found.silhouettes,
            chosen=count is None,
            adjusted_rand=score,
            p_value=found.p_value,
        )

    @property
    def count(self) -> int:
        """Number of groups."""
        return max(self.labels) + 1

    def groups(self) -> dict[str, list[str]]:
        """Return the values in each group."""
        width = len(str(self.count))
        found: dict[str, list[str]] = {f"group{number + 1:0{width}d}": [] for number in range(self.count)}
        names = list(found)
        for name, label in zip(self.names, self.labels, strict=True):
            found[names[label]].append(name)
        return found

    def mapping(self) -> dict[str, str]:
        """Return the group of each value."""
        return {name: group for group, members in self.groups().items() for name in members}

    def verdict(self) -> str:
        """Return the sentence that a report begins with."""
        kept = f"{self.count} groups" if self.count > 1 else "one group"
        text = f"{len(self.names)} values of {self.key!r} make {kept}"
        score = self.silhouettes.get(self.count)
        if score is not None:
            chance = "" if self.p_value is None else f", p = {self.p_value:.2g}"
            text += f" (mean silhouette {score:.2f}{chance})"
        if self.adjusted_rand is not None:
            text += f"; adjusted Rand index against the known groups {self.adjusted_rand:.2f}"
        if self.chosen and self.p_value is not None and self.count == 1:
            text += self._why_one(self.p_value)
        elif self.chosen and score is not None and score < _FAINT:
            text += "; they do not stand out, so compare with one LoRA for all and an expert for each"
        return f"{text}."

    def _why_one(self, p_value: float) -> str:
        """Return why there is one group, and what to do about it."""
        text = f": chance gives groups as good as the best ones (p = {p_value:.2g})"
        if p_value > _CLOSE:
            return f"{text}. They may agree or all differ, so compare with an expert for each"
        return (
            f"{text}. That is close to the limit of {LEVEL:g}: there may be groups that so few rows do not "
            "show. Train on more rows of each, or give the number of groups (--groups N), and compare on "
            "held-out rows"
        )

    def save(self, folder: Path) -> Path:
        """Write ``groups.json``.

        Args:
            folder: Where to.
        """
        content: dict[str, Any] = {
            "key": self.key,
            "groups": self.groups(),
            "losses": [[round(value, 6) for value in row] for row in self.losses],
            "silhouettes": {str(k): round(value, 4) for k, value in self.silhouettes.items()},
            "chosen": self.chosen,
            "adjusted_rand": self.adjusted_rand,
            "p_value": self.p_value,
        }
        path = folder / GROUPS_FILE
        write_file(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        return path
