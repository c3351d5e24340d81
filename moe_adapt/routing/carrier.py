r"""Delivering the gradient of auxiliary losses to routers, exactly, in every checkpointing mode.

An auxiliary loss is a function of router logits `z`. Keeping the logits of the forward pass and
differentiating through them fails silently under reentrant checkpointing: that forward runs without a graph.
Instead

* the loss is differentiated with respect to *copies* of the logits, at once;
* `inject` marks the logits inside each site; its backward adds `scale * dloss/dz`;
* the scale is the gradient that comes in where the value entered the total loss (`carry`). The carrier is
  created after all layers, so autograd runs it first, and loss scaling, accumulation and clipping follow.

A program that takes its loss from log-probabilities never differentiates the carrier. If the value was put
at its disposal without being asked for (`RouteContext.delivery`), the scale is then the share that was
fixed beforehand, whatever loss is differentiated; if the caller asked for it and dropped it, that is an
error.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from moe_adapt.routing.context import RouteContext, SiteKey
from moe_adapt.routing.records import Point

__all__ = ["carry", "inject", "inject_parameter"]


def _scaled(context: RouteContext, extra: Tensor) -> Tensor:
    """Return the auxiliary gradient as much as it counts in this backward pass."""
    if context.aux_scale is not None:
        return context.aux_scale.to(extra.device) * extra
    if context.delivery is None:
        raise RuntimeError(
            "aux_loss() was computed for this forward but its value is not part of the loss being "
            "differentiated; add it: loss = task_loss + tuner.aux_loss()."
        )
    return context.delivery.share * extra


def _add_auxiliary(context: RouteContext, place: tuple[SiteKey, Point], grad: Tensor) -> Tensor:
    context.backward_seen = True
    if context.delivery is not None:
        context.delivery.spent = True
    extra = context.aux_gradients.get(place)
    return grad if extra is None else grad + _scaled(context, extra)


class _Carry(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, anchor: Tensor, context: RouteContext) -> Tensor:
        ctx.context = context
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None, None]:
        ctx.context.aux_scale = grads[0]
        return None, None, None


def inject(logits: Tensor, context: RouteContext, key: SiteKey, point: Point = "logits") -> Tensor:
    """Return `logits` unchanged; their backward adds the auxiliary gradient of the site visit `key`.

    Args:
        logits: What is marked, [N, E].
        context: The context of this forward.
        key: The site visit.
        point: Where in the router the mark is.
    """
    if torch.is_grad_enabled() and logits.requires_grad and not torch.compiler.is_compiling():
        logits.register_hook(partial(_add_auxiliary, context, (key, point)))
    return logits


def inject_parameter(parameter: nn.Parameter, context: RouteContext, extra: Tensor) -> Callable[[], None]:
    """Let the next gradient of a parameter have an auxiliary gradient in it, once.

    Args:
        parameter: The parameter.
        context: The context of this forward.
        extra: Gradient of the auxiliary losses on it.

    Returns:
        Function that takes the mark off.
    """
    left = [extra]

    def add(grad: Tensor) -> Tensor:
        return grad + _scaled(context, left.pop()) if left else grad

    return parameter.register_hook(add).remove


def carry(value: Tensor, context: RouteContext) -> Tensor:
    """Return the scalar `value` so that differentiating it releases the auxiliary gradients of `context`."""
    anchor = torch.zeros((), device=value.device, requires_grad=True)
    return _Carry.apply(value.detach(), anchor, context)
