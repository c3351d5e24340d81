"""Give an adapter more or fewer experts by how much each is used, or how useful it is, site by site.

`merge_to`, `prune_to` and `rehome_to` go down: the most used experts stay, and the others are merged into the
one they are most like, dropped, or dropped after their directions found a new home. `duplicate_to` goes up by
copies of the most useful ones. Which experts these are differs from site to site.

`use` and `utility` hold a number per expert, [E], by the site's path: sums over a trace
(`moe_adapt.evaluation.trace.use`) or scores (`moe_adapt.experts.utility`).
"""

from collections.abc import Mapping, Sequence
from typing import Literal

from torch import Tensor

from moe_adapt.errors import UserError
from moe_adapt.experts import MergeMethod
from moe_adapt.experts.grouping import groups_around_most_used, most_used, similarity
from moe_adapt.experts.rehoming import rehome
from moe_adapt.experts.utility import copies_by_utility, share_above
from moe_adapt.tuner.edit import duplicate_experts, merge_experts, prune_experts
from moe_adapt.tuner.edit_operation import Optimizer, PoolOperation
from moe_adapt.tuner.model import RoutedLoraModel
from moe_adapt.tuner.optimizer_state import OptimizerState

__all__ = ["Keep", "duplicate_to", "keep_above", "merge_to", "prune_to", "rehome_to"]

#: How many experts stay: as many everywhere, or a number for every site by its path.
Keep = int | Mapping[str, int]


def keep_above(use: Mapping[str, Tensor], threshold: float) -> dict[str, int]:
    """Return how many experts of each site have at least a share of its use; one at least.

    Args:
        use: See `merge_to`.
        threshold: Least share of a site's use, from 0 to 1.
    """
    return {site: share_above(own, threshold) for site, own in use.items()}


def merge_to(
    tuner: RoutedLoraModel,
    keep: Keep,
    use: Mapping[str, Tensor],
    method: MergeMethod = "svd",
    rank: int | None = None,
    router: Literal["mean", "rows"] = "mean",
    adapter_name: str | None = None,
    optimizer: Optimizer | None = None,
) -> dict[str, dict[str, float]]:
    """Merge down to a number of experts at every site, by how much each is used.

    The most used experts stay; each of the others joins the one whose change of weight is most like its own
    (`moe_adapt.experts.grouping`), weighted by use. Groups differ from site to site.

    Args:
        tuner: The tuner.
        keep: How many experts stay at each site.
        use: How much each expert of a site is used, [E], by the site's path.
        method: See `merge_experts`.
        rank: See there.
        router: See there.
        adapter_name: See there.
        optimizer: See there.

    Returns:
        What `merge_experts` returns.

    Raises:
        UserError: If a site has fewer experts than that, or its use is not known.

    Reference: MC-SMoE, Li et al. 2023, arXiv 2310.01334.
    """
    pool = PoolOperation(tuner, adapter_name, optimizer)
    used, kept = _checked(pool, use), _kept(pool, keep)
    groups: dict[str, list[list[int]]] = {}
    weights: dict[str, list[list[float]]] = {}
    for layer in pool.layers:
        own = used[layer.site]
        alike = similarity(*layer.factors(pool.adapter))
        groups[layer.site] = groups_around_most_used(alike, own, kept[layer.site])
        weights[layer.site] = [_shares(own, group) for group in groups[layer.site]]
    return merge_experts(tuner, groups, weights, method, rank, router, adapter_name, optimizer)


def prune_to(
    tuner: RoutedLoraModel,
    keep: Keep,
    use: Mapping[str, Tensor],
    adapter_name: str | None = None,
    optimizer: Optimizer | None = None,
) -> None:
    """Drop the least used experts of every site until a number is left.

    Args:
        tuner: The tuner.
        keep: See `merge_to`.
        use: See `merge_to`.
        adapter_name: Name of the adapter; None takes the active one.
        optimizer: Optimizer that holds the adapter's parameters, if there is one.

    Raises:
        UserError: See `merge_to`.
    """
    stay = _staying(PoolOperation(tuner, adapter_name, optimizer), keep, use)
    prune_experts(tuner, _others(stay, use), adapter_name, optimizer)


def rehome_to(
    tuner: RoutedLoraModel,
    keep: Keep,
    use: Mapping[str, Tensor],
    alike: float = 0.5,
    adapter_name: str | None = None,
) -> dict[str, dict[str, float]]:
    """Drop the least used experts of every site; those that stay take in the directions they are like.

    Build an optimizer after it, not before. A frozen expert stays so unless one that learned joins it.

    Args:
        tuner: The tuner.
        keep: See `merge_to`.
        use: See `merge_to`.
        alike: Least cosine of a direction and its new home (`moe_adapt.experts.rehoming`).
        adapter_name: Name of the adapter; None takes the active one.

    Returns:
        Relative error of each expert that others joined, by site and name.

    Raises:
        UserError: See `merge_to`; also if experts share their down-projection.

    Reference: DERN, arXiv 2509.10377.
    """
    pool = PoolOperation(tuner, adapter_name, None)
    stay = _staying(pool, keep, use)
    found = {}
    for layer in pool.layers:
        if layer.specs[pool.adapter].shared_a:
            raise UserError(
                f"the experts of {layer.site} share a down-projection (shared_a), so they have no directions "
                "of their own; merge them instead."
            )
        own = stay[layer.site]
        found[layer.site] = rehome(*layer.factors(pool.adapter), own, use[layer.site], alike)
    errors: dict[str, dict[str, float]] = {}
    for layer in pool.layers:
        spec, new = layer.specs[pool.adapter], found[layer.site]
        held = layer.frozen_experts(pool.adapter)
        frozen = {own[0] for own in new.sources if held >= set(own)} | (held - set(stay[layer.site]))
        if new.errors:
            errors[layer.site] = {spec.names[expert]: error for expert, error in new.errors.items()}
            a, b = (factor.clone() for factor in layer.factors(pool.adapter))
            a[stay[layer.site]], b[:, stay[layer.site]] = new.a, new.b
            layer.set_experts(pool.adapter, a, b, frozen)
    prune_experts(tuner, _others(stay, use), adapter_name)
    return errors


def duplicate_to(
    tuner: RoutedLoraModel,
    count: int,
    utility: Mapping[str, Tensor],
    most: int = 3,
    noise: float = 0.01,
    twin_exclusive: bool = False,
    freeze_originals: bool = False,
    adapter_name: str | None = None,
    optimizer: Optimizer | None = None,
    optimizer_state: OptimizerState = "copy",
) -> list[str]:
    """Copy the most useful experts of every site until there are as many as asked for.

    Args:
        tuner: The tuner.
        count: How many experts every site has afterwards.
        utility: How useful each expert of a site is, [E], by the site's path.
        most: Most copies of an expert before the next best gets one.
        noise: See `duplicate_experts`.
        twin_exclusive: See there.
        freeze_originals: See there.
        adapter_name: See there.
        optimizer: See there.
        optimizer_state: See there.

    Returns:
        The names of the copies.

    Raises:
        UserError: If a site has more experts already, sites differ in number, or a utility is missing.

    Reference: Expert Upcycling, amazon-science/expert-upcycling.
    """
    pool = PoolOperation(tuner, adapter_name, optimizer)
    useful = _checked(pool, utility)
    chosen = {}
    for layer in pool.layers:
        have = layer.specs[pool.adapter].num_experts
        if count < have:
            raise UserError(f"{layer.site} has {have} experts already, more than {count}; merge or prune it.")
        chosen[layer.site] = copies_by_utility(useful[layer.site], count - have, most)
    return duplicate_experts(
        tuner,
        chosen,
        noise=noise,
        twin_exclusive=twin_exclusive,
        freeze_originals=freeze_originals,
        adapter_name=adapter_name,
        optimizer=optimizer,
        optimizer_state=optimizer_state,
    )


def _checked(pool: PoolOperation, use: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return the numbers given, once every site has one for each of its experts."""
    for layer in pool.layers:
        own, count = use.get(layer.site), layer.specs[pool.adapter].num_experts
        if own is None or len(own) != count or not bool((own >= 0).all()):
            raise UserError(f"give the use of the {count} experts of {layer.site!r}, numbers from 0 on.")
    return use


def _kept(pool: PoolOperation, keep: Keep) -> Mapping[str, int]:
    return {layer.site: keep if isinstance(keep, int) else keep[layer.site] for layer in pool.layers}


def _staying(pool: PoolOperation, keep: Keep, use: Mapping[str, Tensor]) -> dict[str, list[int]]:
    used, kept = _checked(pool, use), _kept(pool, keep)
    return {layer.site: most_used(used[layer.site], kept[layer.site]) for layer in pool.layers}


def _others(stay: Mapping[str, list[int]], use: Mapping[str, Tensor]) -> dict[str, list[int]]:
    return {site: [e for e in range(len(use[site])) if e not in set(own)] for site, own in stay.items()}


def _shares(use: Tensor, group: Sequence[int]) -> list[float]:
    own = use[list(group)].double()
    total = float(own.sum())
    return [1 / len(group)] * len(group) if total == 0 else (own / total).tolist()
