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
| merge, concat | dense routing of experts whose router rows agree |
| merge, svd | the same, up to the error that is returned |

An optimizer that exists already must be passed, or it goes on stepping the old tensors.
"""

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from moe_adapt.errors import UserError, did_you_mean
from moe_adapt.experts import MergeMethod, PoolEdit, edit_factors
from moe_adapt.routing import Router
from moe_adapt.tuner.flat_state import FlatRouter
from moe_adapt.tuner.layer import RoutedLoraLayer, adapted_layers
from moe_adapt.tuner.model import RoutedLoraModel
from moe_adapt.tuner.optimizer_state import OptimizerState, Swap, differing_dim
from moe_adapt.tuner.site import SiteSpec

__all__ = ["add_experts", "duplicate_experts", "freeze_experts", "merge_experts", "prune_experts"]

ExpertName = int | str
Optimizer = torch.optim.Optimizer


class _SitePlan(NamedTuple):
    """What happens at one site: the edit, the experts' names after it, old experts to freeze."""

    edit: PoolEdit
    names: list[str]
    freeze: list[int] = []


_Plan = Callable[[RoutedLoraLayer, SiteSpec], _SitePlan]


def add_experts(
    tuner: RoutedLoraModel,
    count: int = 1,
    uids: Sequence[str] | None = None,
    adapter_name: str | None = None,
    optimizer: Optimizer | None = None,
) -> list[str]:
    """Append untrained experts at every site: `A` random, `B` zero, router rows as freshly initialised.

    Args:
        tuner: The tuner.
        count: How many.
        uids: Their names; None takes the next free numbers.
        adapter_name: Name of the adapter; None takes the active one.
        optimizer: Optimizer that holds the adapter's parameters, if there is one.

    Returns:
        The names.

    Raises:
        UserError: If a name is taken.
    """
    pool = _Pool(tuner, adapter_name, optimizer)
    names = pool.new_names(count, uids)
    pool.edit(lambda _, spec: _SitePlan(PoolEdit.add(spec.num_experts, count), [*spec.names, *names]))
    return names


def duplicate_experts(
    tuner: RoutedLoraModel,
    experts: Sequence[ExpertName],
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
        experts: Which ones; one may occur several times.
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
    """
    pool = _Pool(tuner, adapter_name, optimizer, optimizer_state)
    names = pool.new_names(len(experts), uids)
    if not twin_exclusive and pool.keeps_several():
        warnings.warn(
            "top-k will pick an expert together with its copy, which changes the mixture; pass "
            "twin_exclusive=True, or raise k with the number of experts.",
            stacklevel=2,
        )
    if twin_exclusive:
        pool.add_modifier("twin_exclusive")
    pool.rows_noise = noise

    def plan(layer: RoutedLoraLayer, spec: SiteSpec) -> _SitePlan:
        chosen = [
            (i, name) for old, name in zip(experts, names, strict=True) for i in _found(layer, spec, [old])
        ]
        originals = [expert for expert, _ in chosen]
        edit = PoolEdit.duplicate(spec.num_experts, originals)
        after = [*spec.names, *(name for _, name in chosen)]
        return _SitePlan(edit, after, originals if freeze_originals else [])

    pool.require(experts)
    pool.edit(plan)
    return names


def prune_experts(
    tuner: RoutedLoraModel,
    experts: Sequence[ExpertName],
    adapter_name: str | None = None,
    optimizer: Optimizer | None = None,
) -> None:
    """Drop experts at every site that has them.

    Args:
        tuner: The tuner.
        experts: Which ones.
        adapter_name: Name of the adapter; None takes the active one.
        optimizer: Optimizer that holds the adapter's parameters, if there is one.

    Raises:
        UserError: If there is no such expert, or a site would have none left.
    """
    pool = _Pool(tuner, adapter_name, optimizer)

    def plan(layer: RoutedLoraLayer, spec: SiteSpec) -> _SitePlan:
        gone = _found(layer, spec, experts)
        left = [name for number, name in enumerate(spec.names) if number not in gone]
        return _SitePlan(PoolEdit.prune(spec.num_experts, gone), left)

    pool.require(experts)
    pool.edit(plan)


def merge_experts(
    tuner: RoutedLoraModel,
    groups: Sequence[Sequence[ExpertName]],
    weights: Sequence[Sequence[float]] | None = None,
    method: MergeMethod = "svd",
    rank: int | None = None,
    adapter_name: str | None = None,
    optimizer: Optimizer | None = None,
) -> dict[str, dict[str, float]]:
    """Make one expert of each group, in the space of changes of weight; factors are never averaged.

    The merged expert takes the place and name of its group's first member. Its router row is the weighted
    mean of the members'; its logit grows so that it takes their joint share.

    Args:
        tuner: The tuner.
        groups: Disjoint groups of experts.
        weights: Coefficient of each member, such as its share of the load; None takes the mean.
        method: concat is exact, and raises the rank; svd is the best approximation of a rank.
        rank: Rank for svd; None keeps that of the bank.
        adapter_name: Name of the adapter; None takes the active one.
        optimizer: Optimizer that holds the adapter's parameters, if there is one; merged experts start with
            zero moments.

    Returns:
        Relative error (Frobenius norm) of each merged expert, by site and name.
    """
    pool = _Pool(tuner, adapter_name, optimizer)
    pool.method, pool.rank = method, rank

    def plan(layer: RoutedLoraLayer, spec: SiteSpec) -> _SitePlan:
        found = [_found(layer, spec, group) for group in groups]
        edit = PoolEdit.merge(spec.num_experts, found, weights)
        return _SitePlan(edit, [spec.names[members[0][0]] for members in edit.sources])

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
    pool = _Pool(tuner, adapter_name, optimizer)
    pool.require(experts)
    pool.edit(
        lambda layer, spec: _SitePlan(
            PoolEdit.add(spec.num_experts, 0), spec.names, _found(layer, spec, experts)
        )
    )


def _found(layer: RoutedLoraLayer, spec: SiteSpec, experts: Sequence[ExpertName]) -> list[int]:
    """Return the router indices of experts at a site."""
    numbers = []
    for expert in experts:
        if isinstance(expert, str):
            numbers += [spec.names.index(expert)] if expert in spec.names else []
        elif 0 <= expert < spec.num_experts:
            numbers.append(expert)
        else:
            raise UserError(f"{layer.site} has experts 0 to {spec.num_experts - 1}, not {expert}.")
    return numbers


def _expert_dims(config: Any, in_features: int, num_experts: int) -> dict[str, int]:
    """Return the router tensors with a slice per expert, and the dimension: the one that grows with E."""
    now, larger = (
        build_router(config, in_features, count).state_dict() for count in (num_experts, num_experts + 1)
    )
    grown = {name: differing_dim(tensor, larger[name]) for name, tensor in now.items()}
    return {name: dim for name, dim in grown.items() if dim is not None}


def build_router(config: Any, in_features: int, num_experts: int) -> Router:
    """Return a fresh router for a site, as the configuration says."""
    parts = (config.scorer, config.modifiers, config.selector)
    return Router.build(*parts, in_features, num_experts, config.needs_anchor())


class _Pool:
    """One operation on the experts of one adapter."""

    def __init__(
        self,
        tuner: RoutedLoraModel,
        adapter_name: str | None,
        optimizer: Optimizer | None,
        state: OptimizerState = "copy",
    ) -> None:
        self.adapter = adapter_name or tuner.active_adapters[0]
        self.config = tuner._config(self.adapter)
        self.layers = [layer for layer in adapted_layers(tuner.model) if self.adapter in layer.specs]
        for layer in self.layers:
            layer.refuse_shared(self.adapter)
        self.optimizer = optimizer
        self.state: OptimizerState = state
        self.method: MergeMethod = "svd"
        self.rank: int | None = None
        self.rows_noise = 0.0
        self.errors: dict[str, dict[str, float]] = {}

    def require(self, experts: Iterable[ExpertName], everywhere: bool = False) -> None:
        """Check that every named expert exists at a site, or at every site, before anything changes."""
        for expert in experts:
            having = [layer for layer in self.layers if _found(layer, layer.specs[self.adapter], [expert])]
            if not having:
                names = sorted({name for layer in self.layers for name in layer.specs[self.adapter].names})
                raise UserError(
                    f"there is no expert {expert!r}.{did_you_mean(str(expert), names)} "
                    f"Experts: {', '.join(names[:20])}."
                )
            if everywhere and len(having) < len(self.layers):
                raise UserError(f"the expert {expert!r} is missing at some layers, so it cannot be merged.")

    def new_names(self, count: int, uids: Sequence[str] | None) -> list[str]:
        taken = {name for layer in self.layers for name in layer.specs[self.adapter].names}
        if uids is None:
            first = 1 + max((int(name) for name in taken if name.isdigit()), default=-1)
            return [str(first + number) for number in range(count)]
        if len(uids) != count or len(set(uids)) != count or taken & set(uids):
            raise UserError(
                f"{count} new experts need as many new names, got {list(uids)}; "
                f"taken: {', '.join(sorted(taken))}."
            )
        return list(uids)

    def keeps_several(self) -> bool:
        """Return whether the selector keeps a fixed number of experts above one."""
        routers = [layer.routers[self.adapter].skeleton for layer in self.layers]
        return any(getattr(router.selector, "k", 1) > 1 for router in routers)

    def add_modifier(self, name: str) -> None:
        """Put a modifier at the end of every router, unless it is there."""
        specs = list(self.config.modifiers or [])
        if name in [spec if isinstance(spec, str) else spec["name"] for spec in specs]:
            return
        self.config.modifiers = [*specs, name]
        for layer in self.layers:
            experts = layer.specs[self.adapter].num_experts
            swap = Swap.of(layer, self.adapter, PoolEdit.add(experts, 0), self.optimizer)
            router = build_router(self.config, layer.in_features, experts)
            router.load_state_dict(layer.routers[self.adapter].tensors(layer), strict=False)
            self._install(layer, router)
            swap.replace(layer, self.state)

    def edit(self, plan: _Plan) -> None:
        """Apply what `plan` gives for each site."""
        plans = [(layer, plan(layer, layer.specs[self.adapter])) for layer in self.layers]
        if any(self._shifts_shares(layer, edit) for layer, (edit, _, _) in plans):
            self.add_modifier("offset")
        sites = self.config.sites or {}
        for layer, site_plan in plans:
            self._edit_site(layer, *site_plan)
            sites[layer.site] = layer.specs[self.adapter].to_dict()

    def _columns(self, layer: RoutedLoraLayer, edit: PoolEdit) -> PoolEdit:
        return edit.with_nulls(layer.routers[self.adapter].skeleton.selector.nulls)

    def _shifts_shares(self, layer: RoutedLoraLayer, edit: PoolEdit) -> bool:
        return len(set(self._columns(layer, edit).logit_correction())) > 1

    def _edit_site(
        self, layer: RoutedLoraLayer, edit: PoolEdit, names: list[str], freeze: Sequence[int]
    ) -> None:
        adapter, spec = self.adapter, layer.specs[self.adapter]
        swap = Swap.of(layer, adapter, edit, self.optimizer)
        a, b = layer.factors(adapter)
        bound = layer.in_features**-0.5
        fresh = a.new_empty(len(edit.fresh), *a.shape[1:]).uniform_(-bound, bound)
        new = edit_factors(edit, a, b, fresh, self.method, self.rank)
        held = layer.frozen_experts(adapter) | set(freeze)
        copies = set(edit.copies)
        frozen = {
            i
            for i, members in enumerate(edit.sources)
            if members and i not in copies and all(old in held for old, _ in members)
        }
        if new.a.shape[1] != spec.r:
            spec.alpha = layer.scales[adapter] * new.a.shape[1] ** (0.5 if self.config.use_rslora else 1)
        layer.set_experts(adapter, new.a, new.b, frozen)
        spec.uids = None if names == [str(i) for i in range(len(names))] else names
        self._edit_router(layer, edit)
        swap.replace(layer, self.state)
        if new.errors:
            self.errors[layer.site] = {names[i]: error for i, error in new.errors.items()}

    def _edit_router(self, layer: RoutedLoraLayer, edit: PoolEdit) -> None:
        flat, columns = layer.routers[self.adapter], self._columns(layer, edit)
        old = flat.tensors(layer)
        dims = _expert_dims(self.config, layer.in_features, edit.before)
        router = build_router(self.config, layer.in_features, edit.after)
        trained = {name for name, _ in router.scorer.named_parameters(prefix="scorer")}
        state = {}
        for name, fresh in router.state_dict().items():
            state[name] = old[name].detach()
            if name in dims:
                state[name] = columns.rows(state[name], dims[name], fresh.to(state[name]))
                if name in trained and edit.copies:
                    state[name] = _shaken(state[name], dims[name], edit.copies, self.rows_noise)
        router.load_state_dict(state, assign=True)
        for modifier in router.modifiers:
            modifier.edited(columns)  # type: ignore[operator]
        self._install(layer, router)

    def _install(self, layer: RoutedLoraLayer, router: Router) -> None:
        old = layer.routers[self.adapter].tensors(layer)
        new = FlatRouter(layer, self.adapter, router, trainable=True)
        for name, value in new.tensors(layer).items():
            if isinstance(value, nn.Parameter) and name in old:
                value.requires_grad_(old[name].requires_grad)
        layer.routers[self.adapter] = new
        layer._move_adapter_to_device_of_base_layer(self.adapter)


def _shaken(rows: torch.Tensor, dim: int, copies: list[int], noise: float) -> torch.Tensor:
    """Return router rows with noise of a share of their standard deviation on the copies."""
    index = torch.tensor(copies, device=rows.device)
    chosen = rows.index_select(dim, index)
    return rows.index_copy(dim, index, chosen + noise * rows.std() * torch.randn_like(chosen))
