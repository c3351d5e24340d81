r"""Dropping experts without losing what others can take over: each of their directions finds a new home.

Every expert is split by its singular value decomposition into rank-1 segments, which do not depend on how
its factors were chosen:

$$D_e = \sum_k \sigma_k u_k v_k^\top, \qquad
\cos(k, j) = (u_k^\top u_j)\,(v_k^\top v_j)$$

A segment of a dropped expert joins the segment of a kept expert that it is most like, if their cosine reaches
`alike`, and is lost otherwise. A segment that others joined becomes the mean of all of them, weighted by the
use of their experts; a kept expert that nothing joined keeps its bits. The sum has a larger rank, so it is
cut back by the best approximation of the old rank (Eckart-Young), whose error is returned.

DERN splits neurons, for which the segments are given; LoRA has a gauge, so the decomposition comes first.
How DERN clusters back to the old width could not be verified; the weighted mean and the cut are ours.

Reference: "DERN: Dropping Experts, Recombining Neurons: Retraining-Free Pruning for Sparse Mixture-of-Experts
LLMs", arXiv 2509.10377.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from moe_adapt.errors import UserError
from moe_adapt.experts.low_rank import truncate

__all__ = ["Rehomed", "rehome"]


class Rehomed(NamedTuple):
    """The kept experts afterwards.

    Attributes:
        a: Down-projections, [len(keep), r, d].
        b: Up-projections, [o, len(keep), r].
        sources: For each kept expert itself and those that gave it a segment.
        errors: Relative error of the cut to rank r of each expert that others joined, by its old index.
        lost: Segments of dropped experts that found no home.
    """

    a: Tensor
    b: Tensor
    sources: list[list[int]]
    errors: dict[int, float]
    lost: int


def rehome(a: Tensor, b: Tensor, keep: Sequence[int], use: Tensor, alike: float = 0.5) -> Rehomed:
    """Drop all experts but some, whose segments take in those of the others that they are like.

    Args:
        a: Down-projections, [E, r, d].
        b: Up-projections, [o, E, r].
        keep: The experts that stay.
        use: How much each expert is used, [E].
        alike: Least cosine of a segment and its new home. Higher: fewer find one.

    Raises:
        UserError: If no expert stays, or `alike` is no cosine.
    """
    if not keep or not set(keep) <= set(range(len(a))):
        raise UserError(f"of experts 0 to {len(a) - 1} some must stay, got {list(keep)}.")
    if not -1.0 <= alike <= 1.0:
        raise UserError(f"alike is a cosine from -1 to 1, got {alike}.")
    rank = a.shape[1]
    segments = {expert: _segments(a[expert], b[:, expert]) for expert in range(len(a))}
    joined: dict[tuple[int, int], list[tuple[int, int]]] = {}
    lost = 0
    for gone in (expert for expert in range(len(a)) if expert not in set(keep)):
        for number, home in enumerate(_homes(segments[gone], [segments[k] for k in keep], alike)):
            if home is None:
                lost += bool(segments[gone][0][number].any())
            else:
                joined.setdefault((keep[home // rank], home % rank), []).append((gone, number))
    downs, ups, errors, sources = [], [], {}, []
    for expert in keep:
        own = {place[1]: guests for place, guests in joined.items() if place[0] == expert}
        sources.append([expert, *sorted({gone for guests in own.values() for gone, _ in guests})])
        down, up = a[expert], b[:, expert]
        if own:
            down, up = _mixed(expert, own, segments, use)
            down, up, errors[expert] = truncate(down, up, rank)
        downs.append(down.to(a.dtype))
        ups.append(up.to(b.dtype))
    return Rehomed(torch.stack(downs), torch.stack(ups, dim=1), sources, errors, lost)


def _segments(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return an expert's segments as rows: down [r, d] and up [r, o], float64, largest first."""
    down, up, _ = truncate(a.double(), b.double(), a.shape[0])
    return down, up.T


def _homes(
    guests: tuple[Tensor, Tensor], hosts: Sequence[tuple[Tensor, Tensor]], alike: float
) -> list[int | None]:
    """Return for each segment the number of the host segment that it is most like, or None."""
    cosine = torch.ones(())
    for part in range(2):
        rows = F.normalize(torch.cat([host[part] for host in hosts]), dim=-1)
        cosine = cosine * (F.normalize(guests[part], dim=-1) @ rows.T)
    full = torch.cat([host[0] for host in hosts]).any(dim=-1)
    best = cosine.masked_fill(~full, -torch.inf).max(dim=-1)
    there = guests[0].any(dim=-1)
    return [
        int(home) if bool(has) and float(value) >= alike else None
        for value, home, has in zip(best.values, best.indices, there, strict=True)
    ]


def _mixed(
    expert: int,
    joined: dict[int, list[tuple[int, int]]],
    segments: dict[int, tuple[Tensor, Tensor]],
    use: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return factors [R, d] and [o, R] of an expert whose segments took others in, exactly."""
    downs, ups = [], []
    for number in range(len(segments[expert][0])):
        members = [(expert, number), *joined.get(number, [])]
        shares = use[[owner for owner, _ in members]].double()
        total = shares.sum()
        shares = shares / total if total > 0 else torch.full_like(shares, 1 / len(members))
        for (owner, place), share in zip(members, shares, strict=True):
            down, up = segments[owner]
            downs.append(down[place])
            ups.append(up[place] * share)
    return torch.stack(downs), torch.stack(ups, dim=1)
