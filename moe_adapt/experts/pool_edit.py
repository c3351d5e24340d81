r"""An edit of a pool of experts, as data: which old experts each new one comes from.

Adding, duplicating, pruning, reordering and merging experts are the same thing to everything that has a row
per expert (factors, router rows, biases, running means, moments of an optimizer): a map from old to new.
`PoolEdit` is that map; `PoolEdit.rows` carries a tensor over.

Splitting an expert into copies, or joining several into one, changes the softmax of the others. A mixture
stays what it was if each new expert's logit moves by

$$\delta_e = \log \sum_{i \in \mathrm{sources}(e)} \frac{1}{\mathrm{copies}(i)}$$

(`-log 2` for each of two copies, `log 2` for the union of two; equal for all if all are treated alike).

Reference:
    Expert Upcycling, amazon-science/expert-upcycling (duplication); MC-SMoE, UNITES-Lab/MC-SMoE (merging).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from moe_adapt.errors import UserError

__all__ = ["PoolEdit"]


@dataclass(frozen=True)
class PoolEdit:
    """What becomes of the `before` experts of a bank.

    Attributes:
        before: Number of experts before the edit.
        sources: For each expert after it, in the router's order, the old experts that it is made of, as pairs
            of index and coefficient; none for a new expert.

    >>> edit = PoolEdit.duplicate(2, [1])
    >>> edit.rows(torch.tensor([10.0, 20.0]), 0, torch.zeros(3))
    tensor([10., 20., 20.])
    >>> [round(value, 3) for value in edit.logit_correction()]
    [0.0, -0.693, -0.693]
    """

    before: int
    sources: tuple[tuple[tuple[int, float], ...], ...]

    @classmethod
    def add(cls, before: int, count: int) -> "PoolEdit":
        """Return the edit that appends `count` new experts."""
        return cls(before, (*_kept(range(before)), *[()] * count))

    @classmethod
    def prune(cls, before: int, experts: Sequence[int]) -> "PoolEdit":
        """Return the edit that drops `experts`.

        Raises:
            UserError: If none would be left.
        """
        left = [expert for expert in range(before) if expert not in set(experts)]
        if not left:
            raise UserError(f"pruning all {before} experts would leave none; keep at least one.")
        return cls(before, _kept(left))

    @classmethod
    def duplicate(cls, before: int, experts: Sequence[int]) -> "PoolEdit":
        """Return the edit that appends a copy of each of `experts`, in that order."""
        return cls(before, _kept([*range(before), *experts]))

    @classmethod
    def merge(
        cls, before: int, groups: Sequence[Sequence[int]], weights: Sequence[Sequence[float]] | None = None
    ) -> "PoolEdit":
        """Return the edit that makes one expert of each group, in the place of its first member.

        Args:
            before: Number of experts.
            groups: Disjoint groups of experts; an expert in none stays as it is.
            weights: Coefficient of each member; None takes the mean.

        Raises:
            UserError: If groups overlap or are empty, or weights do not fit.
        """
        flat = [expert for group in groups for expert in group]
        if not all(groups) or len(set(flat)) != len(flat):
            raise UserError(f"groups to merge are disjoint and not empty, got {[list(g) for g in groups]}.")
        shares = weights or [[1 / len(group)] * len(group) for group in groups]
        if [len(share) for share in shares] != [len(group) for group in groups]:
            raise UserError("give one weight for each expert of each group to merge.")
        first = {
            group[0]: tuple(zip(group, share, strict=True))
            for group, share in zip(groups, shares, strict=True)
        }
        gone = set(flat) - first.keys()
        return cls(
            before,
            tuple(first.get(expert, ((expert, 1.0),)) for expert in range(before) if expert not in gone),
        )

    @property
    def after(self) -> int:
        """Number of experts after the edit."""
        return len(self.sources)

    @property
    def fresh(self) -> list[int]:
        """New indices of the experts that come from no old one."""
        return [new for new, members in enumerate(self.sources) if not members]

    @property
    def merged(self) -> list[int]:
        """New indices of the experts that are made of several old ones."""
        return [new for new, members in enumerate(self.sources) if len(members) > 1]

    @property
    def copies(self) -> list[int]:
        """New indices of the second and later copies of an old expert."""
        seen: set[int] = set()
        found = []
        for new, members in enumerate(self.sources):
            if len(members) == 1:
                if members[0][0] in seen:
                    found.append(new)
                seen.add(members[0][0])
        return found

    def rows(self, old: Tensor, dim: int, fresh: Tensor) -> Tensor:
        """Carry a tensor with one slice per expert over to the new experts.

        Args:
            old: The tensor, with `before` slices along `dim`.
            dim: The dimension of the experts.
            fresh: Values of the new experts, of the new shape.

        Returns:
            The new tensor: slices of copied experts bit for bit, weighted means of merged ones (whole
            numbers, which are names of groups: that of the first), `fresh` where an expert is new.
        """
        slices = []
        for new, members in enumerate(self.sources):
            if not members:
                slices.append(fresh.select(dim, new))
            elif len(members) == 1 or old.dtype == torch.int64:
                slices.append(old.select(dim, members[0][0]))
            else:
                total = sum(weight for _, weight in members)
                mean = sum(old.select(dim, i).double() * (weight / total) for i, weight in members)
                slices.append(torch.as_tensor(mean).to(old.dtype))
        return torch.stack(slices, dim=dim)

    def logit_correction(self) -> list[float]:
        """Return what to add to each new expert's logit so that a dense mixture stays the same."""
        copies = [0] * self.before
        for members in self.sources:
            for old, _ in members:
                copies[old] += 1
        return [
            math.log(sum(1 / copies[old] for old, _ in members)) if members else 0.0
            for members in self.sources
        ]

    def on_rows(self, owners: Sequence[int], keep: bool) -> tuple["PoolEdit", list[int]]:
        """Return the edit for a router that may have several rows per expert.

        Args:
            owners: Expert of each row of the router before the edit.
            keep: Whether merged experts keep all rows of their members; else rows are averaged, unless a
                member has several already.

        Returns:
            The edit of rows, whose old rows stay in their order, and the expert of each row after it.

        >>> edit, owners = PoolEdit.merge(3, [[0, 2]]).on_rows([0, 1, 2], keep=True)
        >>> edit.sources, owners
        ((((0, 1.0),), ((1, 1.0),), ((2, 1.0),)), [0, 1, 0])
        """
        rows: dict[int, list[int]] = {}
        for row, owner in enumerate(owners):
            rows.setdefault(owner, []).append(row)
        found: list[tuple[int, tuple[tuple[int, float], ...], int]] = []
        seen: set[int] = set()
        for new, members in enumerate(self.sources):
            own = [rows[old] for old, _ in members]
            if len(members) > 1 and not keep and all(len(several) == 1 for several in own):
                mean = tuple((row, weight) for (row,), (_, weight) in zip(own, members, strict=True))
                found.append((min(row for row, _ in mean), mean, new))
                continue
            for row in (row for several in own for row in several):
                found.append((row if row not in seen else len(owners), ((row, 1.0),), new))
                seen.add(row)
            if not members:
                found.append((len(owners), (), new))
        found.sort(key=lambda entry: entry[0])
        return PoolEdit(len(owners), tuple(source for _, source, _ in found)), [new for *_, new in found]

    def with_nulls(self, nulls: int) -> "PoolEdit":
        """Return the edit for a router that has `nulls` more columns at its end, which stay."""
        return PoolEdit(self.before + nulls, (*self.sources, *_kept(range(self.before, self.before + nulls))))


def _kept(experts: Sequence[int] | range) -> tuple[tuple[tuple[int, float], ...], ...]:
    return tuple(((expert, 1.0),) for expert in experts)
