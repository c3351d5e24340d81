"""Softmax over the experts of each token.

The rows of a router are short. PyTorch's CPU softmax vectorises along a row and spends several times its
arithmetic on one shorter than a vector register (16 numbers in fp32); over such rows the elementwise steps,
which run across all rows, are faster. A token's gates do not depend on the tokens beside it, in any bit.
"""

from typing import Any

import torch
from torch import Tensor

__all__ = ["softmax"]

_VECTOR = 16


def _by_steps(logits: Tensor) -> Tensor:
    result = (logits - logits.amax(dim=-1, keepdim=True)).exp_()
    return result.div_(result.sum(dim=-1, keepdim=True))


class _ShortSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        result = _by_steps(logits)
        ctx.save_for_backward(result)
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (result,) = ctx.saved_tensors
        weighted = grads[0] * result
        return weighted - result * weighted.sum(dim=-1, keepdim=True)


def softmax(logits: Tensor) -> Tensor:
    """Return the softmax over the last axis.

    Args:
        logits: [..., E].

    >>> softmax(torch.tensor([[0.0, 0.0, -torch.inf]]))
    tensor([[0.5000, 0.5000, 0.0000]])
    """
    if logits.device.type != "cpu" or logits.shape[-1] >= _VECTOR:
        return logits.softmax(dim=-1)
    logits = logits.contiguous()
    if torch.is_grad_enabled() and logits.requires_grad:
        return _ShortSoftmax.apply(logits)
    return _by_steps(logits)
