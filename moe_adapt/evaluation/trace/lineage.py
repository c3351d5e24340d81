r"""Traces from before and after an edit of the pool, made comparable.

Experts are followed by where they come from (`SiteTrace.origins`): a copy descends from its original, a
merged expert from its members. Two experts, of either trace, are of one *line* if they share an ancestor,
directly or through others. Both traces are folded onto lines: a line is selected where one of its experts
is, its gate and probability are their sums, and the first choice is the line of the largest probability (or,
without probabilities, that of the first expert). So a duplication or a merge that leaves the mixture alone
leaves the folded trace alone, a pruned expert is a line of the first trace only, and a new one a line of the
second.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from moe_adapt.evaluation.trace.record import SiteTrace, pack_bits

__all__ = ["align_sites", "fold_site", "lines"]


def lines(*pools: Iterable[Sequence[str]]) -> list[list[int]]:
    """Return the line of each expert of each pool, numbered as they first occur.

    Args:
        pools: For each pool the origins of its experts.

    >>> lines([["0"], ["1"], ["2"]], [["0", "2"], ["1"], ["3"]])
    [[0, 1, 0], [0, 1, 2]]
    """
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    found = [[list(origins) for origins in pool] for pool in pools]
    for origins in (origins for pool in found for origins in pool):
        for other in origins[1:]:
            parent[root(other)] = root(origins[0])
    numbers: dict[str, int] = {}
    return [[numbers.setdefault(root(origins[0]), len(numbers)) for origins in pool] for pool in found]


def fold_site(site: SiteTrace, line: Sequence[int], count: int) -> SiteTrace:
    """Return the decisions of a site over lines instead of experts.

    Args:
        site: The site.
        line: Line of each of its experts, [E].
        count: Number of lines.
    """
    index = torch.tensor(line)

    def summed(values: Tensor) -> Tensor:
        return torch.zeros(len(values), count).index_add_(1, index, values.float())

    selected = summed(site.selected) > 0
    probs, first = site.probs, torch.cat([index, torch.tensor([-1])])[site.first.long()]
    if probs is not None:
        true, null = probs.split([site.num_experts, site.nulls], dim=1)
        probs = torch.cat([summed(true).to(probs.dtype), null], dim=1)
        first = probs.argmax(dim=1)
        first = first.masked_fill(first >= count, -1)
    return replace(
        site,
        num_experts=count,
        packed=pack_bits(selected),
        weights=summed(site.gates)[selected].to(site.weights.dtype),
        first=first.to(site.first.dtype),
        probs=probs,
        origins=None,
    )


def align_sites(before: SiteTrace, after: SiteTrace) -> tuple[SiteTrace, SiteTrace, int]:
    """Return both sites over the same lines, and how many of these the first has; those come first.

    Sites whose experts are the same, or of which nothing is known, are returned as they are.

    Args:
        before: The site in the first trace.
        after: The site in the second.
    """
    if before.origins is None or after.origins is None or list(before.origins) == list(after.origins):
        return before, after, before.num_experts
    old, new = lines(before.origins, after.origins)
    count = 1 + max(*old, *new)
    return fold_site(before, old, count), fold_site(after, new, count), 1 + max(old)
