"""One edit of an adapter's pool, site by site: what the functions of `moe_adapt.tuner.edit` share."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from moe_adapt.errors import UserError, did_you_mean
from moe_adapt.experts import MergeMethod, PoolEdit, edit_factors, edit_shared_factors
from moe_adapt.routing import Router
from moe_adapt.tuner.flat_state import FlatRouter
from moe_adapt.tuner.layer import RoutedLoraLayer, adapted_layers
from moe_adapt.tuner.model import RoutedLoraModel
from moe_adapt.tuner.optimizer_state import OptimizerState, Swap, differing_dim
from moe_adapt.tuner.site import SiteSpec

__all__ = ["ExpertName", "Optimizer", "PoolOperation", "SitePlan", "found_experts"]

ExpertName = int | str
Optimizer = torch.optim.Optimizer


class SitePlan(NamedTuple):
    """What happens at one site: the edit, the experts' names after it, old experts to freeze."""

    edit: PoolEdit
    names: list[str]
    freeze: list[int] = []


Plan = Callable[[RoutedLoraLayer, SiteSpec], SitePlan]


def found_experts(layer: RoutedLoraLayer, spec: SiteSpec, experts: Sequence[ExpertName]) -> list[int]:
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


def _expert_dims(config: Any, in_features: int, owners: list[int]) -> dict[str, int]:
    """Return the router tensors with a slice per column, and the dimension: the one that grows with them."""
    now, larger = (
        build_router(config, in_features, rows).state_dict() for rows in (owners, [*owners, max(owners) + 1])
    )
    grown = {name: differing_dim(tensor, larger[name]) for name, tensor in now.items()}
    return {name: dim for name, dim in grown.items() if dim is not None}


def build_router(config: Any, in_features: int, owners: list[int]) -> Router:
    """Return a fresh router for a site, as the configuration says; `owners` is the expert of each row."""
    experts = max(owners) + 1
    several = owners if len(owners) > experts else None
    parts = (config.scorer, config.modifiers, config.selector)
    return Router.build(*parts, in_features, experts, config.needs_anchor(), several)


class PoolOperation:
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
            layer.refuse_kind(self.adapter, "edited")
            layer.refuse_pool(self.adapter)
            router = layer.routers[self.adapter]
            if router.skeleton.scorer.on_grid or router.common is not None:
                raise UserError(
                    f"the scorer of {layer.site} has a grid of experts, or shares tensors with other layers, "
                    "so experts cannot be edited; take a scorer with a row per expert, such as linear."
                )
        self.optimizer = optimizer
        self.state: OptimizerState = state
        self.method: MergeMethod = "svd"
        self.rank: int | None = None
        self.rows_noise = 0.0
        self.keep_rows = False
        self.errors: dict[str, dict[str, float]] = {}

    def require(self, experts: Iterable[ExpertName], everywhere: bool = False) -> None:
        """Check that every named expert exists at a site, or at every site, before anything changes."""
        for expert in experts:
            having = [
                layer for layer in self.layers if found_experts(layer, layer.specs[self.adapter], [expert])
            ]
            if not having:
                names = sorted({name for layer in self.layers for name in layer.specs[self.adapter].names})
                raise UserError(
                    f"there is no expert {expert!r}.{did_you_mean(str(expert), names)} "
                    f"Experts: {', '.join(names[:20])}."
                )
            if everywhere and len(having) < len(self.layers):
                raise UserError(f"the expert {expert!r} is missing at some layers, so it cannot be merged.")

    def new_names(self, count: int, uids: Sequence[str] | None) -> list[str]:
        """Return names for new experts: those asked for, or numbers that no expert has had."""
        taken = {name for layer in self.layers for name in layer.specs[self.adapter].names}
        if uids is None:
            specs = [layer.specs[self.adapter] for layer in self.layers]
            numbers = [int(name) + 1 for name in taken if name.isdigit()]
            first = max([*numbers, *(spec.made or spec.num_experts for spec in specs)])
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
            spec = layer.specs[self.adapter]
            nothing = PoolEdit.add(spec.num_experts, 0)
            swap = Swap.of(layer, self.adapter, nothing, self._columns(layer, nothing)[0], self.optimizer)
            router = build_router(self.config, layer.in_features, _owners(spec))
            router.load_state_dict(layer.routers[self.adapter].tensors(layer), strict=False)
            self._install(layer, router)
            swap.replace(layer, self.state)

    def edit(self, plan: Plan) -> None:
        """Apply what `plan` gives for each site."""
        plans = [(layer, plan(layer, layer.specs[self.adapter])) for layer in self.layers]
        for layer, (_, _, freeze) in plans:
            if freeze:
                layer.refuse_shared(self.adapter)
            self._check_rows(layer)
        if any(self._shifts_shares(layer, edit) for layer, (edit, _, _) in plans):
            self.add_modifier("offset")
        sites = self.config.sites or {}
        for layer, site_plan in plans:
            self._edit_site(layer, *site_plan)
            sites[layer.site] = layer.specs[self.adapter].to_dict()

    def _columns(self, layer: RoutedLoraLayer, edit: PoolEdit) -> tuple[PoolEdit, list[int]]:
        """Return the edit of the router's columns, and the expert of each of its rows after it."""
        rows, owners = edit.on_rows(_owners(layer.specs[self.adapter]), self.keep_rows)
        return rows.with_nulls(layer.routers[self.adapter].skeleton.selector.nulls), owners

    def _shifts_shares(self, layer: RoutedLoraLayer, edit: PoolEdit) -> bool:
        return len(set(self._columns(layer, edit)[0].logit_correction())) > 1

    def _check_rows(self, layer: RoutedLoraLayer) -> None:
        scorer = layer.routers[self.adapter].skeleton.scorer
        if self.keep_rows and scorer.from_bank:
            raise UserError(
                f"the scorer of {layer.site} computes its logits from the experts, so merged experts cannot "
                "keep their rows; take router='mean'."
            )

    def _edit_site(
        self, layer: RoutedLoraLayer, edit: PoolEdit, names: list[str], freeze: Sequence[int]
    ) -> None:
        adapter, spec = self.adapter, layer.specs[self.adapter]
        columns, owners = self._columns(layer, edit)
        swap = Swap.of(layer, adapter, edit, columns, self.optimizer)
        a, b = layer.factors(adapter)
        if spec.shared_a:
            new = edit_shared_factors(edit, a, b)
        else:
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
        _follow(spec, edit, names)
        layer.set_experts(adapter, new.a, new.b, frozen)
        self._edit_router(layer, columns, owners)
        swap.replace(layer, self.state)
        if new.errors:
            self.errors[layer.site] = {names[i]: error for i, error in new.errors.items()}

    def _edit_router(self, layer: RoutedLoraLayer, columns: PoolEdit, owners: list[int]) -> None:
        spec = layer.specs[self.adapter]
        old = layer.routers[self.adapter].tensors(layer)
        dims = _expert_dims(self.config, layer.in_features, owners)
        router = build_router(self.config, layer.in_features, owners)
        spec.rows = owners if len(owners) > spec.num_experts else None
        trained = {name for name, _ in router.scorer.named_parameters(prefix="scorer")}
        state = {}
        for name, fresh in router.state_dict().items():
            state[name] = old[name].detach()
            if name in dims:
                state[name] = columns.rows(state[name], dims[name], fresh.to(state[name]))
                if name in trained and columns.copies:
                    state[name] = _shaken(state[name], dims[name], columns.copies, self.rows_noise)
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


def _owners(spec: SiteSpec) -> list[int]:
    """Return the expert of each row of a site's router."""
    return list(range(spec.num_experts)) if spec.rows is None else spec.rows


def _follow(spec: SiteSpec, edit: PoolEdit, names: list[str]) -> None:
    """Note the names of a site's experts after an edit, where they come from and how many there have been."""
    lineage = [
        sorted({name for old, _ in members for name in spec.lineage[old]}) or [names[new]]
        for new, members in enumerate(edit.sources)
    ]
    made = (spec.made or edit.before) + len(edit.copies) + len(edit.fresh)
    spec.uids = None if names == [str(i) for i in range(len(names))] else names
    spec.origins = None if lineage == [[name] for name in names] else lineage
    spec.made = None if made == len(names) else made


def _shaken(rows: torch.Tensor, dim: int, copies: list[int], noise: float) -> torch.Tensor:
    """Return router rows with noise of a share of their standard deviation on the copies."""
    index = torch.tensor(copies, device=rows.device)
    chosen = rows.index_select(dim, index)
    return rows.index_copy(dim, index, chosen + noise * rows.std() * torch.randn_like(chosen))
