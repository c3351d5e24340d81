"""The PEFT tuner: puts `RoutedLoraLayer`s into a base model and answers for the adapter as a whole."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from peft import PeftConfig
from torch import Tensor, nn

from moe_adapt.errors import UserError
from moe_adapt.evaluation.routing import RoutingStats, routing_stats
from moe_adapt.experts.conv import is_supported_convolution
from moe_adapt.routing import AuxLoss, RecordGroup, group_records
from moe_adapt.routing.sample import SampleRoutes
from moe_adapt.tuner.common import CommonTensors, common_parts, install_common, settle_common
from moe_adapt.tuner.config import RoutedLoraConfig, config_for_one_adapter
from moe_adapt.tuner.conv_site import RoutedConvLayer
from moe_adapt.tuner.flat_state import ROUTER_PREFIX
from moe_adapt.tuner.frozen_base import hold_statistics
from moe_adapt.tuner.hooks import ModelHooks
from moe_adapt.tuner.layer import RoutedLoraLayer, adapted_layers
from moe_adapt.tuner.loading import is_adapter_key
from moe_adapt.tuner.mixed_batch import naming_adapters
from moe_adapt.tuner.moe_base import (
    RoutedMoeExperts,
    RoutedMoeGate,
    is_moe_experts,
    is_moe_gate,
    num_moe_experts,
    refuse_other_banks,
)
from moe_adapt.tuner.peft_plugin import PREFIX, BaseTuner, BaseTunerLayer, is_supported_layer
from moe_adapt.tuner.pools import PoolPlan, cast_experts
from moe_adapt.tuner.sample_config import SampleConfig
from moe_adapt.tuner.sample_routing import FOR_ROUTERS
from moe_adapt.tuner.site import SiteSpec
from moe_adapt.tuner.stock_lora import StockSite, stock_experts
from moe_adapt.tuner.summary import AdapterSummary
from moe_adapt.tuner.targets import resolve_targets, site_depth, site_value

__all__ = ["ModelHooks", "RoutedLoraModel", "adapted_layers"]


class RoutedLoraModel(BaseTuner):
    """Routed-LoRA tuner; what `peft.get_peft_model(model, RoutedLoraConfig(...)).base_model` is.

    Beside PEFT's own methods it has the auxiliary loss (`aux_loss`), routing statistics (`routing_stats`),
    the parameter groups for an optimizer (`parameter_groups`), expert freezing (`freeze_experts`) and a
    `summary`.
    """

    prefix: str = PREFIX
    tuner_layer_cls = (RoutedLoraLayer, RoutedMoeGate, RoutedMoeExperts, CommonTensors)  # type: ignore[assignment]
    target_module_mapping: dict[str, list[str]] = {}

    def _pre_injection_hook(self, model: nn.Module, config: PeftConfig, adapter_name: str) -> None:
        parts = {part for name, _ in model.named_modules() for part in name.split(".")}
        if adapter_name.isdigit() or "." in adapter_name or adapter_name in parts:
            raise UserError(
                f"the adapter name {adapter_name!r} would collide with parts of the model's parameter names "
                "when it is saved; choose a name that is no number, has no dot and is no module name."
            )
        hooks = self.__dict__["hooks"] = ModelHooks.of(model)
        install_common(model, hooks.session)

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Create an adapter's layers (see PEFT); resolves per-site values into the saved configuration."""
        self.peft_config[adapter_name] = config_for_one_adapter(self.peft_config[adapter_name])
        self._stock_experts: dict[str, StockSite] = {}
        self._pools = PoolPlan(self._config(adapter_name).pool)
        self._num_depths = 1 + max(
            (depth for name, _ in model.named_modules() if (depth := site_depth(name)) is not None), default=0
        )
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        for layer in adapted_layers(model):
            if layer.site in self._stock_experts:
                experts = self._stock_experts[layer.site]
                layer.moe_adapt_A_frozen[adapter_name].copy_(experts.a)
                layer.moe_adapt_B_frozen[adapter_name].copy_(experts.b)
        self._stock_experts = {}
        self.hooks.watch_stacks()
        hold_statistics(model)
        values = self._config(adapter_name).sample_router
        if values is not None:
            layers = [layer for layer in adapted_layers(model) if adapter_name in layer.specs]
            self.hooks.samples.add(adapter_name, SampleConfig.of(values), layers)

    def train(self, mode: bool = True) -> "RoutedLoraModel":
        """Set training mode; batch statistics of the frozen base never change."""
        super().train(mode)
        hold_statistics(self.model)
        return self

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter (see PEFT), with what it keeps beside its layers."""
        super().delete_adapter(adapter_name)
        for part in common_parts(self.hooks.session):
            part.forget(adapter_name)
        self.hooks.samples.forget(adapter_name)

    def _prepare_adapter_config(self, peft_config: PeftConfig, model_config: dict[str, Any]) -> PeftConfig:
        assert isinstance(peft_config, RoutedLoraConfig)
        if peft_config.experts_from and peft_config.sites is None:
            self._stock_experts = stock_experts(peft_config, self.model)
        peft_config.target_modules = resolve_targets(
            peft_config.target_modules,
            self.model,
            model_config.get("model_type"),
            peft_config.modules_to_save or (),
            peft_config.layers_to_transform,
            peft_config.layers_pattern,
        )
        return peft_config

    def _create_and_replace(
        self,
        peft_config: PeftConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        assert isinstance(peft_config, RoutedLoraConfig)
        spec = self._site_spec(peft_config, current_key, target)
        trainable = adapter_name in self.active_adapters and not peft_config.inference_mode
        if isinstance(target, self.tuner_layer_cls):
            layer: Any = target
            layer.update_layer(adapter_name, spec, peft_config, trainable)
            settle_common(self.model, self.hooks.session)
            return
        layer = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
        kind = RoutedMoeGate if is_moe_gate(layer) else RoutedMoeExperts if is_moe_experts(layer) else None
        if kind is not None:
            refuse_other_banks(peft_config, current_key)
            moe = kind(target, current_key, self.hooks.session).train(target.training)
            spec = replace(spec, num_experts=num_moe_experts(layer))
            peft_config.sites[current_key] = spec.to_dict()  # type: ignore[index]
            moe.update_layer(adapter_name, spec, peft_config, trainable)
            setattr(parent, target_name, moe)
            return
        if not is_supported_layer(layer) and not is_supported_convolution(layer):
            groups = f" with {layer.groups} groups" if isinstance(layer, nn.Conv2d) else ""
            raise UserError(
                f"the layer {current_key!r} is a {type(layer).__name__}{groups}; routed LoRA adapts "
                "nn.Linear, GPT-2's Conv1D, quantised linears and 2-D convolutions without groups: leave "
                "it out of target_modules."
            )
        site = RoutedConvLayer if isinstance(layer, nn.Conv2d) else RoutedLoraLayer
        wrapped = site(target, current_key, self.hooks.session).train(target.training)
        wrapped.update_layer(adapter_name, spec, peft_config, trainable)
        settle_common(self.model, self.hooks.session)
        setattr(parent, target_name, wrapped)

    def _site_spec(self, config: RoutedLoraConfig, site: str, layer: nn.Module) -> SiteSpec:
        config.sites = config.sites or {}
        if site not in config.sites:
            values = {
                name: site_value(getattr(config, name), site, self._num_depths, name)
                for name in ("num_experts", "r", "alpha")
            }
            kind, experts = config.bank_kind(), values["num_experts"]
            size = kind.stored(experts, values["r"], values["alpha"], config.use_rslora)
            shared = bool(config.shared_a) or kind.shares_factors
            pool = self._pools.name(site, layer)
            spec = SiteSpec(experts, size.rank, size.alpha, shared_a=shared, pool=pool)
            config.sites[site] = spec.to_dict()
        return SiteSpec(**config.sites[site])

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        if autocast_adapter_dtype:
            return
        cast_experts(adapted_layers(self.model), adapter_name)

    def unload(self) -> nn.Module:
        """Return the base model with its original layers, without adapters and hooks."""
        model = super().unload()
        self.hooks.remove()
        return model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model with its hooks, which PEFT before 0.21 passes by."""
        return self.model(*args, **kwargs)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        names, beams = kwargs.get("adapter_names"), kwargs.get("num_beams") or 1
        session = self.hooks.session
        before, session.named = session.named, names
        try:
            with naming_adapters(self.model, RoutedLoraLayer, names, self.peft_config, beams):
                yield
        finally:
            session.named = before

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Generate (see transformers); each prompt is routed once, and its experts stay for all its tokens.

        Beside transformers' arguments it takes `adapter_ids` or `domain_ids`, the expert of each sample where
        it is known, and `prompt_mask`.
        """
        inputs = dict(kwargs)
        first = inputs.pop("inputs", None) if not args else args[0]
        if first is not None:
            inputs["input_ids"] = first
        samples = self.hooks.samples
        plain = {name: value for name, value in kwargs.items() if name not in FOR_ROUTERS}
        session = self.hooks.session
        before, session.told = session.told, {name: kwargs[name] for name in FOR_ROUTERS if name in kwargs}
        try:
            with samples.generating(samples.in_use(session.named), inputs):
                return self.model.generate(*args, **plain)
        finally:
            session.told = before

    def routes_samples(self, adapter_name: str | None = None) -> bool:
        """Return whether an adapter decides once per sample, as composed adapters with such a router do."""
        return self._config(adapter_name or self.active_adapters[0]).routes_samples()

    def sample_routes(self, adapter_name: str | None = None) -> SampleRoutes:
        """Return the latest decision of a composed adapter about samples.

        Args:
            adapter_name: Name of the adapter; None takes the active one.

        Raises:
            UserError: If the adapter routes no samples, or no forward has run.
        """
        adapter = adapter_name or self.active_adapters[0]
        routes = self.hooks.samples.last.get(adapter)
        if routes is None:
            raise UserError(
                f"the adapter {adapter!r} has decided about no sample: it is not composed, or no forward ran."
            )
        return routes

    @property
    def add_aux_to_loss(self) -> bool:
        """Whether every training forward delivers its auxiliary loss itself, whatever loss is differentiated.

        Its value is added to `output.loss` where there is one. `RoutingCallback` sets it.
        """
        return self.hooks.add_aux_to_loss

    @add_aux_to_loss.setter
    def add_aux_to_loss(self, value: bool) -> None:
        self.hooks.add_aux_to_loss = value

    @property
    def progress(self) -> float:
        """Share of the optimizer steps that are done, in [0, 1]: what schedules of routers and losses follow.

        Our Lightning modules keep it; in a loop of your own set it before each step. It starts at 1.
        """
        return self.hooks.session.progress

    @progress.setter
    def progress(self, value: float) -> None:
        self.hooks.session.progress = value

    def after_step(self) -> None:
        """Let routers update their buffers, once per optimizer step; see `follow`."""
        self.hooks.after_step()

    def follow(self, optimizer: torch.optim.Optimizer) -> Any:
        """Call `after_step` after every step of an optimizer; return the handle of the hook."""
        return optimizer.register_step_post_hook(lambda *_: self.after_step())

    def aux_loss(self, more: Mapping[str, AuxLoss] | None = None, configured: bool = True) -> Tensor:
        """Return the weighted sum of the auxiliary losses of the last training-mode forward, a scalar.

        Add it to the loss before `backward()`; the gradient reaches every router, under gradient
        checkpointing too.

        Args:
            more: Losses on its decisions beside the configured ones, by name.
            configured: Whether the configured ones count.

        Raises:
            RuntimeError: If there was no such forward, or it is called twice for one forward.
        """
        return self.hooks.aux_loss(more, configured)

    def aux_losses(self) -> dict[str, Tensor]:
        """Return the weighted parts of the last auxiliary loss by name, detached."""
        return dict(self.hooks.parts)

    def parameter_groups(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """Return the trainable parameters with their names, as router, experts and other (heads)."""
        groups: dict[str, list[tuple[str, nn.Parameter]]] = {"router": [], "experts": [], "other": []}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                key = "other"
                if is_adapter_key(name):
                    key = "router" if f".{ROUTER_PREFIX}" in name else "experts"
                groups[key].append((name, parameter))
        return groups

    def freeze_experts(self, experts: Sequence[int], adapter_name: str | None = None) -> None:
        """Freeze experts at every site, bit for bit; do it before an optimizer is built.

        Args:
            experts: Router indices of the experts.
            adapter_name: Name of the adapter; None takes the active one.
        """
        adapter = adapter_name or self.active_adapters[0]
        sites = self._config(adapter).sites or {}
        for layer in adapted_layers(self.model):
            if adapter in layer.specs:
                layer.freeze_experts(adapter, experts)
                sites[layer.site] = layer.specs[adapter].to_dict()

    def record(self):
        """Return a context manager in which evaluation-mode forwards are recorded too."""
        return self.hooks.session.record()

    def routing_stats(self) -> dict[str, RoutingStats]:
        """Return how each site used its experts in the last recorded forward, by site.

        Raises:
            RuntimeError: If no forward was recorded.
        """
        return {
            record.site: routing_stats(
                record.logits, record.gates, record.selected, record.mask, nulls=record.nulls
            )
            for record in self.hooks.session.recorded().records.values()
        }

    def recorded(self) -> list[RecordGroup]:
        """Return the decisions of the last recorded forward, sites of equal shape together.

        Raises:
            RuntimeError: If no forward was recorded.
        """
        return [group for group, _ in group_records(self.hooks.session.recorded().records.values())]

    def broken_sites(self) -> list[str]:
        """Return the layers whose router gave logits that are NaN or +inf in the last forward, in order."""
        context = self.hooks.session.context
        records = [] if context is None else context.records.values()
        return [
            record.site
            for record in records
            if bool((record.logits.isnan() | (record.logits == torch.inf)).any())
        ]

    def uncalled_sites(self) -> list[str]:
        """Return the adapted layers that no forward has reached: their experts cannot learn."""
        layers: list[Any] = [m for m in self.model.modules() if isinstance(m, self.tuner_layer_cls)]
        return [layer.site for layer in layers if not layer.was_called]

    def _config(self, adapter_name: str) -> RoutedLoraConfig:
        config = self.peft_config[adapter_name]
        assert isinstance(config, RoutedLoraConfig)
        return config

    def summary(self, adapter_name: str | None = None) -> AdapterSummary:
        """Return the size of an adapter.

        Args:
            adapter_name: Name of the adapter; None takes the active one.
        """
        adapter = adapter_name or self.active_adapters[0]
        kinds = (RoutedLoraLayer, RoutedMoeExperts)
        layers = [module for module in self.model.modules() if isinstance(module, kinds)]
        specs = [layer.specs[adapter] for layer in layers if adapter in layer.specs]
        banks = {spec.pool or number: spec for number, spec in enumerate(specs)}.values()
        groups = self.parameter_groups()
        convolutions = any(isinstance(layer, RoutedConvLayer) for layer in layers)
        base_linears = [
            name
            for name, module in self.model.named_modules()
            if is_supported_layer(module) or (convolutions and is_supported_convolution(module))
        ]
        return AdapterSummary(
            adapter=adapter,
            method=self._config(adapter).method,
            sites=len(specs),
            linear_layers=len(
                [name for name in base_linears if not re.search(r"modules_to_save|original_mod", name)]
            ),
            experts=sum(spec.num_experts for spec in banks),
            frozen_experts=sum(spec.frozen for spec in specs),
            ranks=sorted({spec.r for spec in specs}),
            trainable={name: _count(parameters) for name, parameters in groups.items()},
            total=sum(parameter.numel() for parameter in self.parameters()),
        )


def _count(parameters: Iterable[tuple[str, nn.Parameter]]) -> int:
    return sum(parameter.numel() for _, parameter in parameters)
