"""The experts of samples in one layer: each sample's own factors, gathered and multiplied as a batch.

A sample's result is a product of its own tokens with its own experts' factors, of shapes that do not depend
on the other experts. So it does not change, to the last bit, when experts join or leave. The gathered factors
are kept with a decision that is held, as it is while text is generated: gathered once, however many tokens
follow.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from moe_adapt.errors import UserError
from moe_adapt.experts import ExpertBank
from moe_adapt.routing import RoutingDecision, RoutingRecord
from moe_adapt.routing.sample import SampleRoutes

__all__ = ["add_sample_experts", "record_samples", "site_gates", "with_known"]


def site_places(routes: SampleRoutes, names: Sequence[str], device: torch.device) -> Tensor:
    """Return where each expert of a decision is at a layer, int [E]; -1 if the layer lacks it.

    Args:
        routes: The decision.
        names: Names of the layer's experts.
        device: Where the tensor is to be.
    """
    own = {name: place for place, name in enumerate(names)}
    return torch.tensor([own.get(name, -1) for name in routes.uids], device=device)


def site_gates(routes: SampleRoutes, names: Sequence[str]) -> Tensor:
    """Return the weight of each of a layer's experts for each sample, [B, E of the layer]."""
    places = site_places(routes, names, routes.gates.device)
    here = places >= 0
    gates = routes.gates.new_zeros(len(routes), len(names))
    gates[:, places[here]] = routes.dense()[:, here].to(gates.dtype)
    return gates


def with_known(
    decision: RoutingDecision, ids: Sequence[str | int | None], names: Sequence[str]
) -> RoutingDecision:
    """Return a decision about tokens in which samples of a known expert use that one alone.

    Args:
        decision: What the router decided, [N, E].
        ids: Name or number of each sample's expert, None or -1 where unknown, [B].
        names: Names of the layer's experts; a sample whose expert is elsewhere uses none.

    Raises:
        UserError: If the tokens are no multiple of the samples.
    """
    tokens = len(decision.gates)
    if not len(ids) or tokens % len(ids):
        raise UserError(f"adapter_ids names {len(ids)} samples; give one id, or None, for each.")
    told, own = [], []
    for uid in ids.tolist() if isinstance(ids, Tensor) else ids:
        told.append(uid is not None and uid != -1)
        own.append([told[-1] and (name == uid or number == uid) for number, name in enumerate(names)])
    device, times = decision.gates.device, tokens // len(ids)
    known = torch.tensor(told, device=device).repeat_interleave(times)[:, None]
    chosen = torch.tensor(own, device=device).repeat_interleave(times, dim=0)
    return RoutingDecision(
        torch.where(known, chosen.to(decision.gates.dtype), decision.gates),
        torch.where(known, chosen, decision.selected),
    )


def record_samples(layer: Any, adapter: str, context: Any, tokens: int, mask: Tensor | None) -> None:
    """Leave a record of what was decided about samples, as a router would about tokens.

    Args:
        layer: The layer.
        adapter: Name of the adapter.
        context: That of the forward.
        tokens: How many tokens the layer sees, `N`.
        mask: Which are real, bool [N].
    """
    if not context.recording:
        return
    routes = context.routes[adapter]
    gates = site_gates(routes, layer.specs[adapter].names).repeat_interleave(tokens // len(routes), dim=0)
    key = context.enter_site(adapter, layer.site)
    logits = gates.clamp(min=1e-6).log()
    context.record(key, RoutingRecord(layer.site, logits, gates, gates > 0, mask, by_label=True))


def _stored(bank: ExpertBank, routes: SampleRoutes, names: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Return where the experts of all samples are stored, int [B K], and which the layer lacks, bool [B, K].

    Layers with the same experts look it up once per decision.
    """
    device = bank.b.device
    key = (device, tuple(names), None if bank.order is None else tuple(bank.order))
    if key not in routes.places:
        places = site_places(routes, names, device)[routes.index.to(device)]
        stored = torch.tensor([bank.position(e) for e in range(bank.num_experts)], device=device)
        routes.places[key] = stored[places.clamp(min=0)].flatten(), places < 0
    return routes.places[key]


def _gather(bank: ExpertBank, routes: SampleRoutes, names: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
    """Return each sample's factors, [B, d, K r] and [B, K r, o], and the weights between them, [B, 1, K r].

    Factors are views of what was gathered, whatever their strides; those of a decision that is held are used
    again and again, and are copied into order.
    """
    chosen, missing = _stored(bank, routes, names)
    samples, rank = len(missing), bank.a.shape[1]
    a = bank.a.index_select(0, chosen).view(samples, -1, bank.a.shape[2]).transpose(1, 2)
    b = bank.b.index_select(1, chosen).view(len(bank.b), samples, -1).permute(1, 2, 0)
    gates = routes.gates.to(bank.b).masked_fill(missing, 0.0) * bank.scale
    weights = gates.repeat_interleave(rank, dim=1)[:, None]
    return (a.contiguous(), b.contiguous(), weights) if routes.held else (a, b, weights)


def add_sample_experts(layer: Any, adapter: str, bank: ExpertBank, tokens: Tensor, result: Tensor) -> Tensor:
    """Return the base output plus each sample's own experts, [N, o].

    Args:
        layer: The layer.
        adapter: Name of the adapter.
        bank: Its experts here.
        tokens: The layer's input, [N, d].
        result: The base output, [N, o].

    Raises:
        UserError: If nothing was decided about the samples, or the tokens are no multiple of them.
    """
    routes = layer.session.current(layer.training).routes.get(adapter)
    if routes is None:
        raise UserError(
            f"nothing is decided about the samples that {layer.site!r} sees; call the model as a whole."
        )
    samples = len(routes)
    if len(tokens) % samples:
        raise UserError(
            f"the layer {layer.site!r} sees {len(tokens)} tokens for {samples} samples; an adapter there "
            "cannot be routed by samples."
        )
    factors = routes.factors.get(layer.site)
    if factors is None:
        factors = _gather(bank, routes, layer.specs[adapter].names)
        if routes.held:
            routes.factors[layer.site] = factors
    a, b, weights = factors
    x = tokens.view(samples, -1, tokens.shape[-1]).to(a.dtype)
    change = torch.bmm(torch.bmm(x, a) * weights, b)
    return result + change.view(len(tokens), -1)
