"""The auxiliary losses of a model's adapters: on the decisions of its last forward, and on experts."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from moe_adapt.errors import UserError
from moe_adapt.routing import AUX_LOSSES, AuxLoss, ExpertLoss, RouteContext, SiteExperts, group_records
from moe_adapt.routing.carrier import carry, inject_parameter
from moe_adapt.routing.session import RoutingSession
from moe_adapt.routing.shared import Shared
from moe_adapt.tuner.layer import adapted_layers
from moe_adapt.tuner.loading import is_adapter_key

__all__ = ["active_losses", "anchor_routing", "deliver_aux_losses", "sum_aux_losses", "trace_aux_losses"]


@torch.no_grad()
def anchor_routing(model: nn.Module, adapter: str = "default") -> None:
    """Move the anchor of the loss ``routing_anchor`` to where the routers are now, say after a task.

    Args:
        model: The model with the adapter.
        adapter: Name of the adapter.

    Raises:
        UserError: If no router of the adapter has an anchor.
    """
    anchors = []
    for layer in adapted_layers(model):
        router = layer.routers.get(adapter)
        rows = None if router is None else router.rows(layer)
        if router is not None and rows is not None and "anchor" in router.containers:
            anchors.append(router.tensors(layer)["anchor"].copy_(rows))
    if not anchors:
        raise UserError(
            f"no router of {adapter!r} has an anchor; list the loss routing_anchor in aux_losses and take a "
            "linear scorer."
        )


def active_losses(model: nn.Module, adapter: str) -> list[tuple[str, AuxLoss]]:
    """Return the auxiliary losses of an adapter that have a weight, with their names."""
    specs = model.peft_config[adapter].aux_losses  # type: ignore[index, union-attr]
    named = [(spec if isinstance(spec, str) else spec["name"], AUX_LOSSES.build(spec)) for spec in specs]
    return [(name, loss) for name, loss in named if loss.weight != 0]


def _on_decisions(
    losses: list[tuple[str, AuxLoss]], context: RouteContext, adapter: str
) -> tuple[Tensor, dict[str, Tensor]] | None:
    """Return the sum of losses on decisions and its parts; their gradient is left in the context."""
    keys = [key for key, record in context.records.items() if key[0] == adapter and not record.by_label]
    if not losses or not keys:
        return None
    grouped = group_records((context.records[key] for key in keys), context.elapsed)
    groups = [group for group, _ in grouped]
    traced = torch.compiler.is_compiling()
    for group in groups:
        if not traced and group.mask is not None and not bool(group.mask.any()):
            raise UserError(
                f"all tokens of this batch are padding at {group.sites[0]!r}, so routers have nothing to "
                "learn from; look at the attention mask."
            )
    terms = {name: loss.weight * loss(groups) for name, loss in losses}
    value = torch.stack(list(terms.values())).sum()
    if traced:
        return value, terms
    places = [(group, point) for group in groups for point in group.points()]
    leaves = [getattr(group, point) for group, point in places]
    gradients = torch.autograd.grad(value, leaves, allow_unused=True)
    positions = {id(group): members for group, members in grouped}
    for (group, point), gradient in zip(places, gradients, strict=True):
        if gradient is not None:
            for i, member in enumerate(positions[id(group)]):
                context.aux_gradients[keys[member], point] = gradient[i]
    return carry(value, context), terms


def _sites(model: nn.Module, adapter: str) -> list[SiteExperts]:
    return [layer.site_experts(adapter) for layer in adapted_layers(model) if adapter in layer.specs]


def _on_experts(
    losses: list[tuple[str, ExpertLoss]], model: nn.Module, context: RouteContext, adapter: str
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the sum of losses on parameters and its parts, differentiable.

    If the value may go unused (`RouteContext.delivery`), it is carried as that of losses on decisions is, and
    its gradient waits at the parameters.
    """
    sites = _sites(model, adapter)
    device = next(model.parameters()).device
    terms = {name: loss.weight * loss(sites, context.elapsed).to(device) for name, loss in losses}
    value = torch.stack(list(terms.values())).sum()
    if context.delivery is None or not value.requires_grad:
        return value, terms
    parameters = [
        parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and is_adapter_key(name) and name.endswith(f".{adapter}")
    ]
    gradients = torch.autograd.grad(value, parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is not None:
            context.unmark.append(inject_parameter(parameter, context, gradient))
    return carry(value, context), terms


def sum_aux_losses(
    model: nn.Module,
    session: RoutingSession,
    more: Mapping[str, AuxLoss] | None = None,
    configured: bool = True,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the weighted sum of the auxiliary losses of the last forward, and its parts by name.

    Args:
        model: The model.
        session: Its session.
        more: Losses on decisions beside the configured ones, by name.
        configured: Whether the configured ones count.

    Raises:
        RuntimeError: If there was no forward in training mode, or the loss was taken already.
    """
    context = session.context
    if context is None or not context.recording:
        raise RuntimeError("aux_loss() needs a forward of the model in training mode first.")
    if context.aux_computed:
        raise RuntimeError("aux_loss() was already called for this forward; keep its value and use that.")
    context.aux_computed = True
    if context.traced_aux is not None:
        return context.traced_aux
    return _summed(model, context, more, configured)


def _summed(
    model: nn.Module,
    context: RouteContext,
    more: Mapping[str, AuxLoss] | None = None,
    configured: bool = True,
) -> tuple[Tensor, dict[str, Tensor]]:
    device = next(model.parameters()).device
    total = torch.zeros((), device=device)
    parts: dict[str, Tensor] = {}
    for adapter in sorted({key[0] for key in context.records}):
        losses = [*(active_losses(model, adapter) if configured else []), *(more or {}).items()]
        with torch.enable_grad(), torch.autocast(device_type=device.type, enabled=False):
            on_experts = [(name, loss) for name, loss in losses if isinstance(loss, ExpertLoss)]
            found = _on_decisions([pair for pair in losses if pair not in on_experts], context, adapter)
            terms: dict[str, Tensor] = {}
            if found is not None:
                total, terms = total + found[0], found[1]
            if on_experts:
                value, extra = _on_experts(on_experts, model, context, adapter)
                total, terms = total + value, {**terms, **extra}
        for name, term in terms.items():
            parts[name] = parts.get(name, 0) + term.detach()
    return total, parts


def trace_aux_losses(model: nn.Module, session: RoutingSession) -> None:
    """Take the auxiliary losses of a forward that is compiled, as part of its graph, and drop its records.

    Records stay inside ``with tuner.record()``; otherwise they would be results of the compiled graph.
    """
    context = session.context
    if context is None:
        return
    if context.training and context.records and torch.is_grad_enabled():
        context.traced_aux = _summed(model, context)
    context.shared = Shared()
    if not session.tracing:
        context.records = {}


def deliver_aux_losses(model: nn.Module, session: RoutingSession) -> tuple[Tensor, dict[str, Tensor]] | None:
    """Let the auxiliary losses of the forward that ends now reach routers and experts, whatever loss is used.

    Returns:
        The weighted sum, to be put at the disposal of the caller, and its parts by name; None if this forward
        adds nothing: without gradients, or with the adapter disabled.

    Raises:
        RuntimeError: If the loss was taken already.
    """
    context = session.context
    if context is None or not context.training or not torch.is_grad_enabled():
        return None
    if not context.records and context.traced_aux is None:
        return None
    if context.traced_aux is None:
        context.delivery = session.delivery()
    return sum_aux_losses(model, session)
