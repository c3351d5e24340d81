"""The auxiliary losses of a model's adapters: on the decisions of its last forward, and on experts."""

import torch
from torch import Tensor, nn

from moe_adapt.errors import UserError
from moe_adapt.routing import AUX_LOSSES, AuxLoss, ExpertLoss, RouteContext, SiteExperts, group_records
from moe_adapt.routing.carrier import carry
from moe_adapt.routing.context import RoutingSession
from moe_adapt.tuner.layer import adapted_layers

__all__ = ["anchor_routing", "sum_aux_losses"]


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


def _aux_losses(model: nn.Module, adapter: str) -> list[tuple[str, AuxLoss]]:
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
    grouped = group_records((context.records[key] for key in keys), context.progress)
    groups = [group for group, _ in grouped]
    for group in groups:
        if group.mask is not None and not bool(group.mask.any()):
            raise UserError(
                f"all tokens of this batch are padding at {group.sites[0]!r}, so routers have nothing to "
                "learn from; look at the attention mask."
            )
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
    return carry(value, context), terms


def _sites(model: nn.Module, adapter: str) -> list[SiteExperts]:
    return [layer.site_experts(adapter) for layer in adapted_layers(model) if adapter in layer.specs]


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
        with torch.enable_grad(), torch.autocast(device_type=device.type, enabled=False):
            on_experts = [(name, loss) for name, loss in losses if isinstance(loss, ExpertLoss)]
            found = _on_decisions([pair for pair in losses if pair not in on_experts], context, adapter)
            terms: dict[str, Tensor] = {}
            if found is not None:
                total, terms = total + found[0], found[1]
            sites = _sites(model, adapter) if on_experts else []
            for name, loss in on_experts:
                terms[name] = loss.weight * loss(sites, context.progress).to(device)
                total = total + terms[name]
        for name, term in terms.items():
            parts[name] = parts.get(name, 0) + term.detach()
    return total, parts
