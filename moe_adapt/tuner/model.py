"""The PEFT tuner: puts `RoutedLoraLayer`s into a base model and answers for the adapter as a whole."""

import copy
import inspect
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftConfig
from torch import Tensor, nn

from moe_adapt.errors import UserError
from moe_adapt.evaluation.routing import RoutingStats, routing_stats
from moe_adapt.routing import AUX_LOSSES, AuxLoss, RouteContext, group_records
from moe_adapt.routing.carrier import carry
from moe_adapt.routing.context import RoutingSession
from moe_adapt.tuner.config import RoutedLoraConfig
from moe_adapt.tuner.flat_state import ROUTER_PREFIX
from moe_adapt.tuner.layer import RoutedLoraLayer, SiteSpec
from moe_adapt.tuner.loading import check_loaded_keys, is_adapter_key
from moe_adapt.tuner.mixed_batch import naming_adapters
from moe_adapt.tuner.peft_plugin import PREFIX, BaseTuner, BaseTunerLayer, is_supported_layer, layer_shape
from moe_adapt.tuner.stock_lora import SiteExperts, collect_sites, read_lora
from moe_adapt.tuner.summary import AdapterSummary
from moe_adapt.tuner.targets import resolve_targets, site_depth, site_value

__all__ = ["ModelHooks", "RoutedLoraModel"]


class ModelHooks:
    """The hooks of a model with routed adapters, one set for all its adapters.

    Args:
        model: The base model.
    """

    def __init__(self, model: nn.Module) -> None:
        self.session = RoutingSession()
        self.add_aux_to_loss = False
        self._names = [name for name in inspect.signature(model.forward).parameters if name != "self"]
        self._handles = [
            model.register_forward_pre_hook(self.before_forward, with_kwargs=True),
            model.register_forward_hook(self.after_forward),
            model.register_load_state_dict_post_hook(check_loaded_keys),
        ]

    @classmethod
    def of(cls, model: nn.Module) -> "ModelHooks":
        """Return the hooks of a model, installing them the first time."""
        for hook in model._forward_pre_hooks.values():
            owner = getattr(hook, "__self__", None)
            if isinstance(owner, cls):
                return owner
        return cls(model)

    def before_forward(self, model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """Open the route context."""
        self.session.open(model, dict(zip(self._names, args, strict=False)) | kwargs)

    def after_forward(self, model: nn.Module, args: tuple, output: Any) -> None:
        """Add the auxiliary loss to `output.loss` in training mode, if asked to."""
        loss = getattr(output, "loss", None)
        if self.add_aux_to_loss and model.training and isinstance(loss, Tensor):
            output.loss = loss + sum_aux_losses(model, self.session)[0]

    def remove(self) -> None:
        """Take the hooks off the model."""
        for handle in self._handles:
            handle.remove()


def adapted_layers(model: nn.Module) -> list[RoutedLoraLayer]:
    """Return the routed layers of a model, in order."""
    return [module for module in model.modules() if isinstance(module, RoutedLoraLayer)]


def _aux_losses(model: nn.Module, adapter: str) -> list[tuple[str, AuxLoss]]:
    specs = model.peft_config[adapter].aux_losses  # type: ignore[index, union-attr]
    named = [(spec if isinstance(spec, str) else spec["name"], AUX_LOSSES.build(spec)) for spec in specs]
    return [(name, loss) for name, loss in named if loss.weight != 0]


def sum_aux_losses(model: nn.Module, session: RoutingSession) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the weighted sum of the auxiliary losses of the last forward, and its parts by name.

    Raises:
        RuntimeError: If there was no forward in training mode, or the loss was taken already.
    """
    context = session.context
    if context is None or not context.recording:
        raise RuntimeError("aux_loss() needs a forward of the model in training mode first.")
    if context.aux_computed:
        raise RuntimeError("aux_loss() was already called for this forward; keep its value and use that.")
    context.aux_computed = True
    device = next(model.parameters()).device
    total = torch.zeros((), device=device)
    parts: dict[str, Tensor] = {}
    for adapter in sorted({key[0] for key in context.records}):
        losses = _aux_losses(model, adapter)
        if not losses:
            continue
        keys = [key for key in context.records if key[0] == adapter]
        grouped = group_records((context.records[key] for key in keys), context.progress)
        groups = [group for group, _ in grouped]
        with torch.enable_grad(), torch.autocast(device_type=device.type, enabled=False):
            terms = {name: loss.weight * loss(groups) for name, loss in losses}
            value = torch.stack(list(terms.values())).sum()
            places = [(group, point) for group in groups for point in group.points()]
            leaves = [getattr(group, point) for group, point in places]
            gradients = torch.autograd.grad(value, leaves, allow_unused=True)
        positions = {id(group): members for group, members in grouped}
        for (group, point), gradient in zip(places, gradients, strict=True):
            if gradient is not None:
                for i, member in enumerate(positions[id(group)]):
                    context.aux_gradients[keys[member], point] = gradient[i]
        total = total + carry(value, context)
        for name, term in terms.items():
            parts[name] = parts.get(name, 0) + term.detach()
    return total, parts


class RoutedLoraModel(BaseTuner):
    """Routed-LoRA tuner; what `peft.get_peft_model(model, RoutedLoraConfig(...)).base_model` is.

    Beside PEFT's own methods it has the auxiliary loss (`aux_loss`), routing statistics (`routing_stats`),
    the parameter groups for an optimizer (`parameter_groups`), expert freezing (`freeze_experts`) and a
    `summary`.
    """

    prefix: str = PREFIX
    tuner_layer_cls = RoutedLoraLayer
    target_module_mapping: dict[str, list[str]] = {}

    def _pre_injection_hook(self, model: nn.Module, config: PeftConfig, adapter_name: str) -> None:
        parts = {part for name, _ in model.named_modules() for part in name.split(".")}
        if adapter_name.isdigit() or "." in adapter_name or adapter_name in parts:
            raise UserError(
                f"the adapter name {adapter_name!r} would collide with parts of the model's parameter names "
                "when it is saved; choose a name that is no number, has no dot and is no module name."
            )
        hooks = ModelHooks.of(model)
        self.__dict__["hooks"] = hooks
        self.peft_config[adapter_name] = copy.deepcopy(config)

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Create an adapter's layers (see PEFT); resolves per-site values into the saved configuration."""
        self._stock_experts: dict[str, SiteExperts] = {}
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

    def _prepare_adapter_config(self, peft_config: PeftConfig, model_config: dict[str, Any]) -> PeftConfig:
        assert isinstance(peft_config, RoutedLoraConfig)
        if peft_config.experts_from and peft_config.sites is None:
            self._stock_experts = stock_experts(peft_config, self.model)
        peft_config.target_modules = resolve_targets(
            peft_config.target_modules,
            self.model,
            model_config.get("model_type"),
            peft_config.modules_to_save or (),
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
        spec = self._site_spec(peft_config, current_key)
        trainable = adapter_name in self.active_adapters and not peft_config.inference_mode
        if isinstance(target, RoutedLoraLayer):
            target.update_layer(adapter_name, spec, peft_config, trainable)
            return
        layer = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
        if not is_supported_layer(layer):
            raise UserError(
                f"the layer {current_key!r} is a {type(layer).__name__}; routed LoRA adapts nn.Linear, "
                "GPT-2's Conv1D and bitsandbytes linears: leave it out of target_modules."
            )
        wrapped = RoutedLoraLayer(target, current_key, self.hooks.session).train(target.training)
        wrapped.update_layer(adapter_name, spec, peft_config, trainable)
        setattr(parent, target_name, wrapped)

    def _site_spec(self, config: RoutedLoraConfig, site: str) -> SiteSpec:
        config.sites = config.sites or {}
        if site not in config.sites:
            values = {
                name: site_value(getattr(config, name), site, self._num_depths, name)
                for name in ("num_experts", "r", "alpha")
            }
            config.sites[site] = SiteSpec(**values).to_dict()
        return SiteSpec(**config.sites[site])

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        if autocast_adapter_dtype:
            return
        for layer in adapted_layers(self.model):
            _, dtype = layer._get_base_layer_device_and_dtype(layer.get_base_layer())
            for name in ("moe_adapt_A", "moe_adapt_B", "moe_adapt_A_frozen", "moe_adapt_B_frozen"):
                container = getattr(layer, name)
                if adapter_name in container and dtype is not None and dtype.is_floating_point:
                    value = container[adapter_name]
                    cast = value.detach().to(dtype)
                    container[adapter_name] = (
                        nn.Parameter(cast, requires_grad=value.requires_grad)
                        if isinstance(value, nn.Parameter)
                        else cast
                    )

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
        with naming_adapters(self.model, RoutedLoraLayer, names, self.peft_config, beams):
            yield

    @property
    def add_aux_to_loss(self) -> bool:
        """Whether the model adds the auxiliary loss to `output.loss` itself, for `transformers.Trainer`."""
        return self.hooks.add_aux_to_loss

    @add_aux_to_loss.setter
    def add_aux_to_loss(self, value: bool) -> None:
        self.hooks.add_aux_to_loss = value

    def aux_loss(self) -> Tensor:
        """Return the weighted sum of the auxiliary losses of the last training-mode forward, a scalar.

        Add it to the loss before `backward()`; the gradient reaches every router, under gradient
        checkpointing too.

        Raises:
            RuntimeError: If there was no such forward, or it is called twice for one forward.
        """
        total, self._aux_parts = sum_aux_losses(self.model, self.hooks.session)
        return total

    def aux_losses(self) -> dict[str, Tensor]:
        """Return the weighted parts of the last `aux_loss()` by name, detached."""
        return dict(getattr(self, "_aux_parts", {}))

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
        context: RouteContext | None = self.hooks.session.context
        if context is None or not context.recording:
            raise RuntimeError(
                "no forward was recorded; run one in training mode or inside `with tuner.record():`."
            )
        return {
            record.site: routing_stats(
                record.logits, record.gates, record.selected, record.mask, nulls=record.nulls
            )
            for record in context.records.values()
        }

    def uncalled_sites(self) -> list[str]:
        """Return the adapted layers that no forward has reached: their experts cannot learn."""
        return [layer.site for layer in adapted_layers(self.model) if not layer.was_called]

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
        specs = [layer.specs[adapter] for layer in adapted_layers(self.model) if adapter in layer.specs]
        groups = self.parameter_groups()
        base_linears = [name for name, module in self.model.named_modules() if is_supported_layer(module)]
        return AdapterSummary(
            adapter=adapter,
            method=self._config(adapter).method,
            sites=len(specs),
            linear_layers=len(
                [name for name in base_linears if not re.search(r"modules_to_save|original_mod", name)]
            ),
            experts=sum(spec.num_experts for spec in specs),
            frozen_experts=sum(spec.frozen for spec in specs),
            ranks=sorted({spec.r for spec in specs}),
            trainable={name: _count(parameters) for name, parameters in groups.items()},
            total=sum(parameter.numel() for parameter in self.parameters()),
        )


def stock_experts(config: RoutedLoraConfig, model: nn.Module) -> dict[str, SiteExperts]:
    """Read the adapters of `config.experts_from` and write their layers into the configuration."""
    named = config.experts_from
    pairs = named.items() if isinstance(named, dict) else [(None, source) for source in named or []]
    shapes = {
        name.removesuffix(".base_layer"): layer_shape(module)
        for name, module in model.named_modules()
        if is_supported_layer(module)
    }
    sites = collect_sites(
        [read_lora(source, uid) for uid, source in pairs], shapes, getattr(model, "name_or_path", None)
    )
    config.target_modules = "|".join(re.escape(site) for site in sites)
    config.sites = {}
    for site, experts in sites.items():
        count, rank, _ = experts.a.shape
        alpha = experts.scale * rank ** (0.5 if config.use_rslora else 1)
        config.sites[site] = SiteSpec(count, rank, alpha, frozen=count, uids=experts.uids).to_dict()
    return sites


def _count(parameters: Iterable[tuple[str, nn.Parameter]]) -> int:
    return sum(parameter.numel() for _, parameter in parameters)
