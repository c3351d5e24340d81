"""Apply a pool edit to the factors of a bank."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from moe_adapt.errors import UserError
from moe_adapt.experts.low_rank import concatenate, truncate
from moe_adapt.experts.pool_edit import PoolEdit

__all__ = ["EditedFactors", "MergeMethod", "edit_factors", "edit_shared_factors", "pad_rank"]

#: How merged experts are made: exactly, at the sum of the ranks, or as the best approximation of a rank.
MergeMethod = Literal["concat", "svd"]


@dataclass(frozen=True)
class EditedFactors:
    """The factors after an edit.

    Attributes:
        a: Down-projections, [E', r', d].
        b: Up-projections, [o, E', r'].
        errors: Relative error of each merged expert, by its new index.
    """

    a: Tensor
    b: Tensor
    errors: dict[int, float]


def pad_rank(a: Tensor, b: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return an expert's factors [r, d] and [o, r] with zeros up to a rank: the same matrix."""
    more = rank - a.shape[0]
    if more == 0:
        return a, b
    return torch.cat([a, a.new_zeros(more, a.shape[1])]), torch.cat([b, b.new_zeros(b.shape[0], more)], dim=1)


def edit_factors(
    edit: PoolEdit,
    a: Tensor,
    b: Tensor,
    fresh_a: Tensor,
    method: MergeMethod = "svd",
    rank: int | None = None,
) -> EditedFactors:
    """Return the experts after an edit. Copies are bit-equal; new ones have the factor `B` zero.

    Args:
        edit: The edit.
        a: Down-projections in the router's order, [E, r, d].
        b: Up-projections in the router's order, [o, E, r].
        fresh_a: Down-projections of the new experts, [len(edit.fresh), r, d].
        method: How to merge: concat is exact and raises the rank of the whole bank to that of the largest
            group; svd keeps `rank`.
        rank: Rank of experts merged by SVD; None keeps that of the bank.

    Raises:
        UserError: If the rank is out of range.
    """
    if rank is not None and rank < 1:
        raise UserError(f"the rank of a merged expert is at least 1, got {rank}.")
    pairs: list[tuple[Tensor, Tensor]] = []
    errors: dict[int, float] = {}
    fresh = iter(fresh_a)
    for new, members in enumerate(edit.sources):
        if not members:
            down = next(fresh)
            pairs.append((down, b.new_zeros(b.shape[0], len(down))))
        elif len(members) == 1:
            pairs.append((a[members[0][0]], b[:, members[0][0]]))
        else:
            chosen, weights = [i for i, _ in members], [weight for _, weight in members]
            down, up = concatenate(a[chosen], b[:, chosen], weights)
            errors[new] = 0.0
            if method == "svd":
                down, up, errors[new] = truncate(down, up, rank or a.shape[1])
            pairs.append((down, up))
    width = max(len(down) for down, _ in pairs)
    padded = [pad_rank(down, up, width) for down, up in pairs]
    return EditedFactors(
        a=torch.stack([down for down, _ in padded]),
        b=torch.stack([up for _, up in padded], dim=1),
        errors=errors,
    )


def edit_shared_factors(edit: PoolEdit, a: Tensor, b: Tensor) -> EditedFactors:
    """Return the experts after an edit if all of them have one `A`: merging is exact, `sum_i w_i B_i`.

    Args:
        edit: The edit.
        a: The down-projection, [1, r, d].
        b: Up-projections in the router's order, [o, E, r].
    """
    ups = []
    for members in edit.sources:
        if len(members) == 1:
            ups.append(b[:, members[0][0]])
        else:
            ups.append(sum((weight * b[:, i] for i, weight in members), torch.zeros_like(b[:, 0])))
    return EditedFactors(a=a, b=torch.stack(ups, dim=1), errors=dict.fromkeys(edit.merged, 0.0))
