r"""Delivering the gradient of auxiliary losses to routers, exactly, in every checkpointing mode.

An auxiliary loss is a function of router logits `z`. Keeping the logits of the forward pass and
differentiating through them fails silently under reentrant checkpointing: that forward runs without a graph.
Instead

* `aux_loss()` differentiates the loss with respect to *copies* of the logits, at once;
* the value enters the total loss through `carry`, whose backward notes the incoming gradient (the loss
  scale);
* `inject` marks the logits inside each site; its backward adds `scale * dloss/dz`.

The carrier is created after all layers, so autograd runs it first. Loss scaling, accumulation and clipping
follow, because the scale is the true incoming gradient.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from moe_adapt.routing.context import RouteContext, SiteKey
from moe_adapt.routing.records import Point

__all__ = ["carry", "inject"]


def _add_auxiliary(context: RouteContext, place: tuple[SiteKey, Point], grad: Tensor) -> Tensor:
    extra = context.aux_gradients.get(place)
    if extra is None:
        return grad
    if context.aux_scale is None:
        raise RuntimeError(
            "aux_loss() was computed for this forward but its value is not part of the loss being "
            "differentiated; add it: loss = task_loss + tuner.aux_loss()."
        )
    return grad + context.aux_scale * extra


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
    if not (torch.is_grad_enabled() and logits.requires_grad):
        return logits
    logits.register_hook(partial(_add_auxiliary, context, (key, point)))
    return logits


def carry(value: Tensor, context: RouteContext) -> Tensor:
    """Return the scalar `value` so that differentiating it releases the auxiliary gradients of `context`."""
    anchor = torch.zeros((), device=value.device, requires_grad=True)
    return _Carry.apply(value.detach(), anchor, context)
