"""Edit the pool of experts of an adapter: add, duplicate, freeze, prune, merge.

Every operation changes all sites at once and carries everything along that has a row per expert: factors,
frozen blocks, router rows, modifiers, and the moments of an optimizer that is passed. Experts are named by
their number in the router's order (an int) or by their uid (a str); sites that lack a uid are left alone.

Which operations leave the model's outputs as they were:

| operation | exact for |
|---|---|
| add | logits of old experts are bit-equal; a new expert starts at zero, but takes its share of the gates |
| duplicate | dense routing, any number of copies (`offset` moves the logits); top-k with `twin_exclusive` |
| prune | tokens that did not use the expert |
| merge, concat | dense routing of experts whose logits agree; with `router="rows"` all other gates stay |
| merge, svd | the same, up to the error that is returned |

An optimizer that exists already must be passed, or it goes on stepping the old tensors.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

from moe_adapt.errors import UserError
from moe_adapt.experts import MergeMethod, PoolEdit
from moe_adapt.tuner.edit_operation import ExpertName, Optimizer, PoolOperation, SitePlan, found_experts
from moe_adapt.tuner.layer import RoutedLoraLayer
from moe_adapt.tuner.model import RoutedLoraModel
from moe_adapt.tuner.optimizer_state import OptimizerState
from moe_adapt.tuner.site import SiteSpec

Experts: TypeAlias = Sequence[ExpertName]
Groups: TypeAlias = Sequence[Experts]
Weights: TypeAlias = Sequence[Sequence[float]]

__all__ = [
    "add_experts",
    "duplicate_experts",
    "freeze_experts",
    "merge_experts",
    "prune_experts",
]


def add_experts(
    tuner: RoutedLoraModel,
    count: int = 1,
    uids: Sequence[str] | None = None,
    adapter_name: str | None = None,
    optimizer: Optimizer | None = None,
    freeze_others: bool = False,
) -> list[str]:
    """Append untrained experts at every site: `A` random, `B` zero, router rows as freshly initialised.

    Args:
        tuner: The tuner.
        count: How many.
        uids: Their names; None takes the next free numbers.
        adapter_name: Name of the adapter; None takes the active one.
        optimizer: Optimizer that holds the adapter's parameters, if there is one.
        freeze_others: Freeze the experts that are there.

    Returns:
        The names.

    Raises:
        UserError: If a name is taken.
    """
    pool = PoolOperation(tuner, adapter_name, optimizer)
    names = pool.new_names(count, uids)

    def plan(layer: RoutedLoraLayer, spec: SiteSpec) -> SitePlan:
        held = list(range(spec.num_experts)) if freeze_others else []
        return SitePlan(PoolEdit.add(spec.num_experts, count), [*spec.names, *names], held)

    pool.edit(plan)
    return names


def duplicate_experts(
    tuner: RoutedLoraModel,
    experts: Experts | Mapping[str, Experts],
    uids: Sequence[str] | None = None,
    noise: float = 0.01,
    twin_exclusive: bool = False,
    freeze_originals: bool = False,
    adapter_name: str | None = None,
    optimizer: Optimizer | None = None,
    optimizer_state: OptimizerState = "copy",
) -> list[str]:
    """Append a trainable copy of each of some experts.

    Args:
        tuner: The tuner.
        experts: Which ones; one may occur several times. Or as many for every site by its path.
        uids: Names of the copies; None takes the next free numbers.
        noise: Standard deviation of what is added to the copies' router rows, as a share of the rows' own;
            without any, a copy never parts from its original under dense routing.
        twin_exclusive: Let each token use one of an expert and its copies at most (modifier
            ``twin_exclusive``), which is what keeps top-k routing the same.
        freeze_originals: Freeze the originals, so that only copies go on learning.
        adapter_name: Name of the adapter; None takes the active one.
        optimizer: Optimizer that holds the adapter's parameters, if there is one.
        optimizer_state: What becomes of the copies' moments: copied, zero (reset) or halved (scale).

    Returns:
        The names of the copies.

    Raises:
        UserError: If there is no such expert, or sites would get different numbers of copies.
    """
    pool = PoolOperation(tuner, adapter_name, optimizer, optimizer_state)
    own = _per_site(pool, experts)
    counts = {len(chosen) for chosen in own.values()}
    if len(counts) != 1:
        raise UserError(f"every site gets equally many copies, not {sorted(counts)}.")
    names = pool.new_names(counts.pop(), uids)
    if not twin_exclusive and pool.keeps_several():
        warnings.warn(
            "top-k will pick an expert together with its copy, which changes the mixture; pass "
            "twin_exclusive=True, or raise k with the number of experts.",
            stacklevel=2,
        )
    if twin_exclusive:
        pool.add_modifier("twin_exclusive")
    pool.rows_noise = noise

    def plan(layer: RoutedLoraLayer, spec: SiteSpec) -> SitePlan:
        chosen = [
            (i, name)
            for old, name in zip(own[layer.site], names, strict=True)
            for i in found_experts(layer, spec, [old])
        ]
        originals = [expert for expert, _ in chosen]
        edit = PoolEdit.duplicate(spec.num_experts, originals)
        after = [*spec.names, *(name for _, name in chosen)]
        return SitePlan(edit, after, originals if freeze_originals else [])

    pool.edit(plan)
    return names


def prune_experts(
    tuner: RoutedLoraModel,
    experts: Experts | Mapping[str, Experts],
    adapter_name: str | None = None,
    optimizer: Optimizer | None = None,
) -> None:
    """Drop experts at every site that has them.

    Args:
        tuner: The tuner.
        experts: Which ones, or those of every site by its path.
        adapter_name: Name of the adapter; None takes the active one.
        optimizer: Optimizer that holds the adapter's parameters, if there is one.

    Raises:
        UserError: If there is no such expert, or a site would have none left.
    """
    pool = PoolOperation(tuner, adapter_name, optimizer)
    own = _per_site(pool, experts)

    def plan(layer: RoutedLoraLayer, spec: SiteSpec) -> SitePlan:
        gone = found_experts(layer, spec, own[layer.site])
        left = [name for number, name in enumerate(spec.names) if number not in gone]
        return SitePlan(PoolEdit.prune(spec.num_experts, gone), left)

    pool.edit(plan)


def _per_site(pool: PoolOperation, experts: Experts | Mapping[str, Experts]) -> Mapping[str, Experts]:
    """Return the experts of every site, checked before anything changes."""
    if not isinstance(experts, Mapping):
        pool.require(experts)
        return {layer.site: experts for layer in pool.layers}
    _require_sites(pool, experts)
    for layer in pool.layers:
        found_experts(layer, layer.specs[pool.adapter], experts[layer.site])
    return experts


def _require_sites(pool: PoolOperation, given: Mapping[str, object]) -> None:
    lacking = [layer.site for layer in pool.layers if layer.site not in given]
    if lacking:
        raise UserError(f"experts are given per site, but not for {lacking[0]!r}.")


def merge_experts(
    tuner: RoutedLoraModel,
    groups: Groups | Mapping[str, Groups],
    weights: Weights | Mapping[str, Weights] | None = None,
    method: MergeMethod = "svd",
    rank: int | None = None,
    router: Literal["mean", "rows"] = "mean",
    adapter_name: str | None = None,
    optimizer: Optimizer | None = None,
) -> dict[str, dict[str, float]]:
    """Make one expert of each group, in the space of changes of weight; factors are never averaged.

    The merged expert takes the place and name of its group's first member. Experts that share `A` are merged
    exactly, in either way, by adding up their `B`.

    Args:
        tuner: The tuner.
        groups: Disjoint groups of experts, or such groups for every site by its path.
        weights: Coefficient of each member, such as its share of the load, in the same form; None takes the
            mean.
        method: concat is exact, and raises the rank; svd is the best approximation of a rank.
        rank: Rank for svd; None keeps that of the bank.
        router: The merged expert's logit: mean, from one row, the weighted mean of the members', raised by
            the logarithm of their number; or rows, the log-sum-exp of all their logits, so that under a
            softmax it gets exactly their joint share, at the router's old size.
        adapter_name: Name of the adapter; None takes the active one.
        optimizer: Optimizer that holds the adapter's parameters, if there is one; merged experts start with
            zero moments.

    Returns:
        Relative error (Frobenius norm) of each merged expert, by site and name.
    """
    pool = PoolOperation(tuner, adapter_name, optimizer)
    pool.method, pool.rank, pool.keep_rows = method, rank, router == "rows"
    if router not in ("mean", "rows"):
        raise UserError(f"the router of merged experts is 'mean' or 'rows', got {router!r}.")

    def plan(layer: RoutedLoraLayer, spec: SiteSpec) -> SitePlan:
        own = groups[layer.site] if isinstance(groups, Mapping) else groups
        parts = weights[layer.site] if isinstance(weights, Mapping) else weights
        found = [found_experts(layer, spec, group) for group in own]
        edit = PoolEdit.merge(spec.num_experts, found, parts)
        return SitePlan(edit, [spec.names[members[0][0]] for members in edit.sources])

    if isinstance(groups, Mapping):
        _require_sites(pool, groups)
    else:
        pool.require([expert for group in groups for expert in group], everywhere=True)
    pool.edit(plan)
    return pool.errors


def freeze_experts(
    tuner: RoutedLoraModel,
    experts: Sequence[ExpertName],
    adapter_name: str | None = None,
    optimizer: Optimizer | None = None,
) -> None:
    """Freeze experts bit for bit at every site that has them; also with an optimizer that exists already.

    Args:
        tuner: The tuner.
        experts: Which ones.
        adapter_name: Name of the adapter; None takes the active one.
        optimizer: Optimizer that holds the adapter's parameters, if there is one.
    """
    pool = PoolOperation(tuner, adapter_name, optimizer)
    pool.require(experts)
    pool.edit(
        lambda layer, spec: SitePlan(
            PoolEdit.add(spec.num_experts, 0), spec.names, found_experts(layer, spec, experts)
        )
    )
