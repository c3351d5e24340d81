r"""Which adapters of a pool to keep under a budget, and which of them answers for those that are left out.

With `V[a, u]`, how well adapter `u` suits what adapter `a` is for, sizes `s`, and a budget `b`,

$$\max_{S}\; \sum_a w_a \max_{u \in S} V_{au} \quad \text{subject to} \quad \sum_{u \in S} s_u \le b .$$

`V` follows from what the pool keeps: the router's scores at the texts' means or centroids. So a table is
solved again for another budget, or after an adapter came or went, without reading a text. The solver takes
the adapter with the largest gain per size again and again, and compares with the best single one; with at
most `EXACT` adapters it tries all sets. The savings score is the share of all sizes that is not kept.

Departure: the paper maps categories of queries to experts of different models and does not say how it solves
the table; here the categories are what the adapters are for.

Reference: Jain et al., "Composition of Experts", arXiv 2412.01868.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import torch
from torch import Tensor

from moe_adapt.errors import UserError
from moe_adapt.hub.pool.router import AdapterRouter, PrototypeRouter, StatisticsRouter
from moe_adapt.hub.pool.store import AdapterPool
from moe_adapt.routing.sample.base import entries

__all__ = ["EXACT", "Table", "sizes_of", "solve", "values_of"]

#: Up to so many adapters all sets are tried.
EXACT = 12


@dataclass(frozen=True)
class Table:
    """What is kept, and who answers for whom.

    Attributes:
        kept: The adapters that are kept.
        answers: The kept adapter that answers for each one.
        value: Mean of the values of these answers.
        best: The same without a budget.
        savings: Share of all sizes that is not kept.
    """

    kept: list[str]
    answers: dict[str, str]
    value: float
    best: float
    savings: float


def solve(
    uids: Sequence[str],
    values: Tensor,
    sizes: Sequence[float],
    budget: float,
    weights: Sequence[float] | None = None,
) -> Table:
    """Return the table of a budget.

    Args:
        uids: Names of the adapters.
        values: How well each adapter (column) suits what another (row) is for, [A, A].
        sizes: Size of each.
        budget: The most that may be kept, in the same unit.
        weights: How often each one's texts come; None for equally often.

    Raises:
        UserError: If no adapter fits.

    >>> solve(["a", "b"], torch.eye(2), [1, 2], budget=1).answers
    {'a': 'a', 'b': 'a'}
    """
    fitting = [u for u, size in enumerate(sizes) if size <= budget]
    if not fitting:
        raise UserError(f"no adapter fits into {budget:g}: the smallest takes {min(sizes):g}.")
    share = torch.ones(len(uids)) if weights is None else torch.tensor(list(map(float, weights)))
    share = share.double() / share.sum()
    gains = values.double() * share[:, None]
    every = len(uids) <= EXACT
    kept = _of_all_sets(gains, sizes, budget) if every else _greedy(gains, sizes, budget, fitting)
    who = [kept[int(place)] for place in values[:, kept].argmax(dim=1)]
    return Table(
        kept=[uids[u] for u in kept],
        answers={uid: uids[u] for uid, u in zip(uids, who, strict=True)},
        value=_value(gains, kept),
        best=_value(gains, list(range(len(uids)))),
        savings=1 - sum(sizes[u] for u in kept) / sum(sizes),
    )


def _value(gains: Tensor, kept: list[int]) -> float:
    return float(gains[:, kept].amax(dim=1).sum())


def _of_all_sets(gains: Tensor, sizes: Sequence[float], budget: float) -> list[int]:
    """Return the best set; of equally good ones the smallest."""
    sets = [
        list(chosen)
        for count in range(1, len(sizes) + 1)
        for chosen in combinations(range(len(sizes)), count)
        if sum(sizes[u] for u in chosen) <= budget
    ]
    return max(sets, key=lambda chosen: (_value(gains, chosen), -sum(sizes[u] for u in chosen)))


def _greedy(gains: Tensor, sizes: Sequence[float], budget: float, fitting: list[int]) -> list[int]:
    """Return a set by the largest gain per size, or the best single adapter if that is better."""
    kept: list[int] = []
    left = set(fitting)
    while left:
        now = _value(gains, kept) if kept else None
        room = budget - sum(sizes[u] for u in kept)
        left = {u for u in left if sizes[u] <= room}

        def rate(u: int, now: float | None = now) -> float:
            base = float(gains.amin(dim=1).sum()) if now is None else now
            return (_value(gains, [*kept, u]) - base) / max(sizes[u], 1e-12)

        chosen = max(sorted(left), key=rate, default=None)
        if chosen is None or (kept and rate(chosen) <= 0):
            break
        kept.append(chosen)
        left.discard(chosen)
    single = max(fitting, key=lambda u: _value(gains, [u]))
    return sorted(kept) if _value(gains, kept) >= _value(gains, [single]) else [single]


def values_of(router: AdapterRouter) -> tuple[list[str], Tensor]:
    """Return the adapters' names, and how well each (column) suits what another (row) is for, [A, A]."""
    uids = router.route(next(iter(_typical(router).values()))).uids
    typical = _typical(router)
    rows = [router.route(typical[uid]).scores.mean(dim=0) for uid in uids]
    return uids, torch.stack(rows)


def _typical(router: AdapterRouter) -> dict[str, Tensor]:
    """Return what a router keeps of each adapter's examples: a mean, centroids, or features, [k, d]."""
    if isinstance(router, PrototypeRouter):
        found: Mapping[str, Tensor] = router.prototypes
    else:
        assert isinstance(router, StatisticsRouter)
        kept = entries(router.statistics.state())
        names = ("mean", "prototypes", "features")
        found = {uid: next(parts[name] for name in names if name in parts) for uid, parts in kept.items()}
    if not found:
        raise UserError("the pool is empty; add an adapter first.")
    return {uid: tensor.float().reshape(-1, tensor.shape[-1]) for uid, tensor in found.items()}


def sizes_of(pool: AdapterPool, given: Mapping[str, float]) -> dict[str, float]:
    """Return the size of every adapter's tensors in MB.

    Args:
        pool: The pool.
        given: Sizes of adapters that are no folder here.

    Raises:
        UserError: If a size is not known.
    """
    found = dict(given)
    for uid, member in pool.members.items():
        path = Path(member.source).expanduser() / "adapter_model.safetensors"
        if uid not in found and not path.is_file():
            raise UserError(f"{member.source} is no folder here; say --size {uid}=MB.")
        found.setdefault(uid, path.stat().st_size / 1e6 if path.is_file() else 0.0)
    return found
