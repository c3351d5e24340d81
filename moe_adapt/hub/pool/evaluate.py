"""How well a pool routes: texts whose adapter is known, and texts that none is for."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from torch import Tensor

from moe_adapt.errors import UserError, did_you_mean
from moe_adapt.files import write_file
from moe_adapt.hub.pool.store import AdapterPool

__all__ = ["PoolEvaluation", "evaluate_pool"]

_BASE = "base"


@dataclass
class PoolEvaluation:
    """What an evaluation found.

    Attributes:
        columns: Adapters, and the base.
        routed: How many texts of each adapter (rows) went to each column.
        margin: Mean lead of the best score over the next.
        foreign: Share of the texts that no adapter is for, which were left to the base; None without any.
    """

    columns: list[str]
    routed: dict[str, list[int]] = field(default_factory=dict)
    margin: float = 0.0
    foreign: float | None = None

    def share(self, uid: str, column: str) -> float:
        """Return the share of an adapter's texts that went to a column."""
        row = self.routed[uid]
        return row[self.columns.index(column)] / max(sum(row), 1)

    @property
    def accuracy(self) -> float:
        """Mean over adapters of the share of their texts that found them."""
        return sum(self.share(uid, uid) for uid in self.routed) / len(self.routed)

    def __str__(self) -> str:
        lines = [f"| | {' | '.join(self.columns)} |", f"|---|{'---|' * len(self.columns)}"]
        lines += [f"| {uid} | {' | '.join(map(str, row))} |" for uid, row in self.routed.items()]
        left = sum(self.share(uid, _BASE) for uid in self.routed) / len(self.routed)
        text = (
            f"{self.accuracy:.1%} of the texts find their own adapter, {left:.1%} are left to the base "
            f"(means over adapters); mean lead of the best {self.margin:.3f}"
        )
        if self.foreign is not None:
            text += f"; {self.foreign:.1%} of the foreign texts are left to the base"
        return "\n".join([*lines, "", text])

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        write_file(path, json.dumps({**asdict(self), "accuracy": self.accuracy}, indent=1) + "\n")


def evaluate_pool(
    pool: AdapterPool,
    texts: Mapping[str, Sequence[str]],
    embed: Callable[[Sequence[str]], Tensor],
    foreign: Sequence[str] = (),
    least: float | None = None,
) -> PoolEvaluation:
    """Route texts whose adapter is known.

    Args:
        pool: The pool.
        texts: Texts of each adapter, best none that it was made with.
        embed: Returns the embeddings of texts, [Q, d].
        foreign: Texts that no adapter is for.
        least: Least score, see `Plan.suiting`.

    Raises:
        UserError: If there are texts of an adapter that the pool lacks, or none at all.
    """
    if not texts:
        raise UserError("an evaluation needs texts of at least one adapter.")
    for uid in texts:
        if uid not in pool.members:
            raise UserError(f"the pool has no adapter {uid!r}.{did_you_mean(uid, pool.members)}")
    found = PoolEvaluation([*pool.members, _BASE])
    leads, total = 0.0, 0
    for uid, own in texts.items():
        plan = pool.route(embed(own))
        counts = dict.fromkeys(found.columns, 0)
        for pairs in plan.suiting(least=least):
            counts[pairs[0][0] if pairs else _BASE] += 1
        found.routed[uid] = list(counts.values())
        for pairs in plan.best(2):
            leads += pairs[0][1] - (pairs[1][1] if len(pairs) > 1 else 0.0)
            total += 1
    found.margin = leads / max(total, 1)
    if foreign:
        left = pool.route(embed(foreign)).suiting(least=least)
        found.foreign = sum(not pairs for pairs in left) / len(left)
    return found
