"""A frozen linear layer with a routed mixture of LoRA experts beside it, for any number of named adapters."""

import math
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from moe_adapt.errors import UserError
from moe_adapt.experts import ExpertBank
from moe_adapt.routing import RouteContext, Router, RoutingDecision, SiteExperts
from moe_adapt.routing.session import RoutingSession
from moe_adapt.tuner.config import RoutedLoraConfig
from moe_adapt.tuner.flat_state import FlatBank, FlatRouter
from moe_adapt.tuner.merging import MergesConstantGates
from moe_adapt.tuner.mixed_batch import add_mixed_experts
from moe_adapt.tuner.peft_plugin import (
    BufferDict,
    layer_shape,
)
from moe_adapt.tuner.pools import SharesExperts
from moe_adapt.tuner.sample_experts import add_sample_experts, record_samples, with_known
from moe_adapt.tuner.site import SiteSpec

__all__ = ["RoutedLoraLayer", "adapted_layers"]


class RoutedLoraLayer(nn.Module, MergesConstantGates, SharesExperts):
    """Adds `s sum_e g_e B_e A_e x` to the output of a frozen linear layer.

    Every tensor sits in a container keyed by adapter name. Trainable experts are parameters (`moe_adapt_A`
    [E, r, d], `moe_adapt_B` [o, E, r]); frozen ones are persistent buffers of the same form, which have no
    gradient, no weight decay and no optimizer state, and which PEFT cannot thaw.

    Args:
        base_layer: The layer to adapt.
        site: Its path in the model.
        session: Opens the route context of each model forward.
    """

    adapter_layer_names: tuple[str, ...] = ("moe_adapt_A", "moe_adapt_B")
    other_param_names: tuple[str, ...] = (
        "moe_adapt_A_frozen",
        "moe_adapt_B_frozen",
        "moe_adapt_A_start",
        "moe_adapt_B_start",
        "moe_adapt_dropout",
        "specs",
        "routers",
        "scales",
        "base_compute",
        "by_sample",
        "kinds",
    )

    def __init__(self, base_layer: nn.Module, site: str, session: RoutingSession) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.site = site
        self.session = session
        self.in_features, self.out_features = layer_shape(base_layer)
        self.moe_adapt_A = nn.ParameterDict()
        self.moe_adapt_B = nn.ParameterDict()
        self.moe_adapt_A_frozen = BufferDict({}, persistent=True)
        self.moe_adapt_B_frozen = BufferDict({}, persistent=True)
        self.moe_adapt_A_start = BufferDict({}, persistent=True)
        self.moe_adapt_B_start = BufferDict({}, persistent=True)
        self.moe_adapt_dropout = nn.ModuleDict()
        self.specs: dict[str, SiteSpec] = {}
        self.routers: dict[str, FlatRouter] = {}
        self.scales: dict[str, float] = {}
        self.base_compute: dict[str, bool] = {}
        self.by_sample: dict[str, bool] = {}
        self.kinds: dict[str, FlatBank] = {}
        self.was_called = False
        self._disable_adapters = False
        self.merged_adapters: list[str] = []

    def update_layer(
        self, adapter_name: str, spec: SiteSpec, config: RoutedLoraConfig, trainable: bool = True
    ) -> None:
        """Create the tensors of an adapter: `A` kaiming-uniform per expert, `B` zero unless asked otherwise.

        Experts are fp32 (fp64 on an fp64 base), as PEFT keeps adapters; the router is always at least fp32.

        Args:
            adapter_name: Name of the adapter.
            spec: Values for this layer.
            config: The adapter's configuration.
            trainable: Whether the parameters get gradients.
        """
        dtype, kind = self._adapter_dtype(), config.bank_kind()
        pooled = spec.pool is not None
        bound = 1 / math.sqrt(self.in_features)
        blocks: tuple[tuple[Any, Any, int], ...] = (
            (self.moe_adapt_A_frozen, self.moe_adapt_B_frozen, spec.frozen),
            (self.moe_adapt_A, self.moe_adapt_B, spec.num_experts - spec.frozen),
        )
        for downs, ups, count in blocks:
            if count == 0:
                continue
            downs_count, ups_count = 1 if spec.shared_a else count, 1 if kind.shares_factors else count
            down = torch.empty(downs_count, spec.r, self.in_features, dtype=dtype).uniform_(-bound, bound)
            up = torch.zeros(self.out_features, ups_count, spec.r, dtype=dtype)
            if not config.init_weights:
                up.uniform_(-(spec.r**-0.5), spec.r**-0.5)
            if pooled:
                self.join_pool(adapter_name, spec, nn.Parameter(down), nn.Parameter(up), trainable)
                continue
            is_frozen = downs is self.moe_adapt_A_frozen
            downs[adapter_name] = down if is_frozen else nn.Parameter(down, requires_grad=trainable)
            ups[adapter_name] = up if is_frozen else nn.Parameter(up, requires_grad=trainable)
        dropout: float = config.dropout  # type: ignore[assignment]
        module = nn.Dropout(dropout) if dropout > 0 else nn.Identity()
        self.moe_adapt_dropout[adapter_name] = module.train(self.training)
        router = Router.build(
            scorer=config.scorer,  # type: ignore[arg-type]
            modifiers=config.modifiers,  # type: ignore[arg-type]
            selector=config.selector,  # type: ignore[arg-type]
            in_features=self.in_features,
            num_experts=spec.num_experts,
            anchored=config.needs_anchor(),
            owners=spec.rows,
        )
        router.pool = spec.pool
        self.routers[adapter_name] = FlatRouter(
            self, adapter_name, router.to(dtype), trainable, self.common_router
        )
        if kind.shares_factors:
            size = (spec.num_experts, spec.r)
            self.kinds[adapter_name] = FlatBank(self, adapter_name, kind, size, dtype, trainable)
        self.specs[adapter_name] = spec
        self.scales[adapter_name] = spec.scale(config.use_rslora)
        self.base_compute[adapter_name] = config.compute_dtype == "base"
        self.by_sample[adapter_name] = config.routes_samples()
        if config.needs_start():
            self._await_start(adapter_name)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.move_common(adapter_name)

    def _await_start(self, adapter_name: str) -> None:
        """Make the buffers for the factors of the start, not taken yet."""
        for start, factor in zip(
            (self.moe_adapt_A_start, self.moe_adapt_B_start), self.factors(adapter_name), strict=True
        ):
            start[adapter_name] = torch.full_like(factor, torch.nan)

    def site_experts(self, adapter_name: str) -> SiteExperts:
        """Return an adapter's experts here as losses on parameters see them."""
        bank, spec, router = self.bank(adapter_name), self.specs[adapter_name], self.routers[adapter_name]
        stored = [bank.position(expert) for expert in range(spec.num_experts)]
        rows, start = router.rows(self), None
        if adapter_name in self.moe_adapt_A_start:
            start = (self.moe_adapt_A_start[adapter_name], self.moe_adapt_B_start[adapter_name])
        return SiteExperts(
            site=self.site,
            a=bank.a if spec.shared_a else bank.a[stored],
            b=bank.b[:, stored],
            scale=bank.scale,
            uids=spec.names,
            rows=None if rows is None else spec.expert_rows(rows),
            start=start,
        )

    def _adapter_dtype(self) -> torch.dtype:
        weight = getattr(self.get_base_layer(), "weight", None)
        if weight is None or not weight.is_floating_point():
            return torch.float32
        return torch.promote_types(weight.dtype, torch.float32)

    def bank(self, adapter_name: str, dtype: torch.dtype | None = None) -> ExpertBank:
        """Return the experts of an adapter at this layer.

        Args:
            adapter_name: Name of the adapter.
            dtype: What to compute in; None keeps the dtype of the tensors.
        """
        blocks, spec = [], self.specs[adapter_name]
        if adapter_name in self.moe_adapt_A_frozen:
            blocks.append((self.moe_adapt_A_frozen[adapter_name], self.moe_adapt_B_frozen[adapter_name]))
        owner: Any = self.pool(adapter_name) or self
        if adapter_name in owner.moe_adapt_A:
            blocks.append((owner.moe_adapt_A[adapter_name], owner.moe_adapt_B[adapter_name]))
        bank = ExpertBank.from_blocks(
            blocks,
            self.scales[adapter_name],
            order=None if spec.order is None else tuple(spec.order),
            dtype=dtype,
            frozen=spec.frozen,
        )
        return self.kinds[adapter_name](self, bank) if adapter_name in self.kinds else bank

    def freeze_experts(self, adapter_name: str, experts: Sequence[int]) -> None:
        """Move experts to the frozen block; do this before an optimizer is built.

        Args:
            adapter_name: Name of the adapter.
            experts: Router indices of the experts to freeze; already frozen ones stay so.

        Raises:
            UserError: If an index is out of range.
        """
        spec = self.specs[adapter_name]
        for expert in experts:
            if not 0 <= expert < spec.num_experts:
                raise UserError(f"{self.site} has experts 0 to {spec.num_experts - 1}, not {expert}.")
        frozen = self.frozen_experts(adapter_name)
        if set(experts) <= frozen:
            return
        self.refuse_shared(adapter_name)
        a, b = self.factors(adapter_name)
        self.set_experts(
            adapter_name, a, b, frozen | set(experts), self.moe_adapt_A[adapter_name].requires_grad
        )

    def refuse_shared(self, adapter_name: str) -> None:
        """Raise `UserError` if experts or layers share factors, so that none can be held alone."""
        self.refuse_kind(adapter_name, "frozen by themselves")
        self.refuse_pool(adapter_name)
        if self.specs[adapter_name].shared_a:
            raise UserError(
                f"the experts of {self.site} share a down-projection (shared_a) that all of them train, so "
                "none can be frozen by itself; use a method without shared_a."
            )

    def refuse_kind(self, adapter_name: str, done: str) -> None:
        """Raise `UserError` if the experts are tensors beside factors that all share.

        Args:
            adapter_name: Name of the adapter.
            done: What was to be done to them.
        """
        if adapter_name in self.kinds:
            name = self.kinds[adapter_name].kind.registered_name
            raise UserError(
                f"the experts of {self.site} share one LoRA (bank={name!r}), so they cannot be {done}; take "
                "bank='lora' for that."
            )

    def frozen_experts(self, adapter_name: str) -> set[int]:
        """Return the router indices of the frozen experts."""
        spec = self.specs[adapter_name]
        return set((spec.order or range(spec.num_experts))[: spec.frozen])

    def factors(self, adapter_name: str) -> tuple[Tensor, Tensor]:
        """Return detached factors [E, r, d] and [o, E, r] of an adapter's experts in the router's order.

        Those that all experts share are there once.
        """
        experts = self.bank(adapter_name)
        if not experts.has_own_factors:
            return experts.a.detach(), experts.b.detach()
        stored = [experts.position(expert) for expert in range(experts.num_experts)]
        a, b = experts.a.detach(), experts.b.detach()
        return a if self.specs[adapter_name].shared_a else a[stored], b[:, stored]

    def set_experts(
        self, adapter_name: str, a: Tensor, b: Tensor, frozen: Collection[int], trainable: bool = True
    ) -> None:
        """Replace an adapter's experts by others, of any number and rank; the scale `s` stays.

        Args:
            adapter_name: Name of the adapter.
            a: Down-projections in the router's order, [E, r, d]; [1, r, d] if the experts share one.
            b: Up-projections in the router's order, [o, E, r].
            frozen: Router indices of the experts to store as frozen; none or all if they share `A`.
            trainable: Whether the others get gradients.
        """
        spec, experts = self.specs[adapter_name], range(b.shape[1])
        self.refuse_pool(adapter_name)
        held = [expert for expert in experts if expert in frozen]
        live = [expert for expert in experts if expert not in frozen]
        for container in (
            self.moe_adapt_A,
            self.moe_adapt_B,
            self.moe_adapt_A_frozen,
            self.moe_adapt_B_frozen,
        ):
            if adapter_name in container:
                del container[adapter_name]
        if held:
            self.moe_adapt_A_frozen[adapter_name] = (a if spec.shared_a else a[held]).clone()
            self.moe_adapt_B_frozen[adapter_name] = b[:, held].clone()
        if live:
            down = (a if spec.shared_a else a[live]).clone()
            self.moe_adapt_A[adapter_name] = nn.Parameter(down, requires_grad=trainable)
            self.moe_adapt_B[adapter_name] = nn.Parameter(b[:, live].clone(), requires_grad=trainable)
        order = held + live
        spec.num_experts, spec.r, spec.frozen = len(experts), a.shape[1], len(held)
        spec.order = None if order == sorted(order) else order
        if adapter_name in self.moe_adapt_A_start:
            self._await_start(adapter_name)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the base output plus the mixtures of the active adapters, in the base output's dtype."""
        names = kwargs.pop("adapter_names", None)
        if names is not None and self.merged:
            raise UserError("adapter_names does not go with merged adapters; unmerge them first.")
        if self.session.bare:
            return self.base_layer(x, *args, **kwargs)
        self.was_called = True
        if self.disable_adapters:
            if self.merged:
                self.unmerge()
            return self.base_layer(x, *args, **kwargs)
        result = self.base_layer(x, *args, **kwargs)
        if self.merged:
            return result
        if names is not None:
            return self._with_named_experts(names, x, result)
        active = [name for name in self.active_adapters if name in self.specs]
        return self._with_experts(active, x, result) if active else result

    def _with_experts(self, active: Sequence[str], x: Tensor, result: Tensor) -> Tensor:
        """Return the base output plus the mixtures of adapters, in its dtype and shape."""
        dtype, shape = result.dtype, result.shape
        context = self.session.current(self.training)
        mask = context.arrive(self.site, x)
        tokens = x.reshape(-1, self.in_features)
        result = result.reshape(-1, self.out_features)
        for adapter in active:
            result = self._add_experts(adapter, tokens, context, mask, result)
        return result.to(dtype).view(shape)

    def _with_named_experts(self, names: Sequence[str], x: Tensor, result: Tensor) -> Tensor:
        """Return the base output plus the mixture of each sample's own adapter."""
        return add_mixed_experts(self, x, result, names)

    def _add_experts(
        self, adapter: str, tokens: Tensor, context: RouteContext, mask: Tensor | None, result: Tensor
    ) -> Tensor:
        bank = self.bank(adapter, dtype=tokens.dtype if self.base_compute[adapter] else None)
        if self.by_sample[adapter]:
            result = add_sample_experts(self, adapter, bank, tokens, result)
            record_samples(self, adapter, context, len(tokens), mask)
            return result
        router, dropout = self.routers[adapter], self.moe_adapt_dropout[adapter]
        place = (adapter, self.site, mask)
        if torch.compiler.is_compiling():
            decision = self._told(adapter, context, router(self, tokens, context, bank, *place))
            return bank(dropout(self._cast_input_dtype(tokens, bank.a.dtype)), decision.gates, result)
        rows = router.rows(self)
        slots = router.skeleton.selector.slots(bank.num_experts)
        stacks = bank.stacks(tokens, slots)
        if stacks and rows is not None and self._shares_input(tokens, bank, rows, dropout):
            hidden, scores = bank.shrink(tokens, rows)
            decision = self._told(
                adapter, context, router(self, tokens, context, bank, *place, scores=scores)
            )
            return bank.expand(hidden, decision.gates, result)
        decision = self._told(adapter, context, router(self, tokens, context, bank, *place))
        inputs = dropout(self._cast_input_dtype(tokens, bank.a.dtype))
        index = None if stacks or slots is None else decision.selected.float().topk(slots).indices
        return bank(inputs, decision.gates, result, index)

    def _told(self, adapter: str, context: RouteContext, decision: RoutingDecision) -> RoutingDecision:
        """Return the decision, in which the experts that the batch names (`adapter_ids`) win."""
        if context.adapter_ids is None:
            return decision
        return with_known(decision, context.adapter_ids, self.specs[adapter].names)

    @staticmethod
    def _shares_input(tokens: Tensor, bank: ExpertBank, rows: Tensor, dropout: nn.Module) -> bool:
        """Return whether router and experts see the same numbers, so that one product can serve both."""
        drops = isinstance(dropout, nn.Dropout) and dropout.training
        same = tokens.dtype == bank.a.dtype == rows.dtype and rows.dtype in (torch.float32, torch.float64)
        return (
            same and not drops and bank.num_experts > 1 and not torch.is_autocast_enabled(tokens.device.type)
        )

    def extra_repr(self) -> str:
        """Return the experts of each adapter for `print(model)`."""
        return ", ".join(f"{name}: E={spec.num_experts} r={spec.r}" for name, spec in self.specs.items())


def adapted_layers(model: nn.Module) -> list[RoutedLoraLayer]:
    """Return the routed layers of a model, in order."""
    return [module for module in model.modules() if isinstance(module, RoutedLoraLayer)]
