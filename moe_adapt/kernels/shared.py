r"""Experts that share one down-projection (HydraLoRA): one product down, gates times hidden vector, one up.

$$y = W x + B_{cat} (s\,g \otimes A x)$$

`A` [1, r, d] is never copied per expert, and its gradient is that of one LoRA.

Reference: HydraLoRA, arXiv 2404.19245.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from moe_adapt.kernels.problem import Operands

__all__ = ["forward"]


def forward(operands: Operands) -> Tensor:
    """Return the base output plus the mixture, [N, o], in the wider of their types.

    Args:
        operands: What to compute; `a` is [1, r, d], all experts are trained.
    """
    hidden = F.linear(operands.x, operands.a[0])
    weights = (operands.dense_gates() * operands.scale).to(hidden.dtype)
    outer = (weights.unsqueeze(-1) * hidden.unsqueeze(1)).flatten(1)
    up = operands.b.flatten(1)
    if operands.base is None:
        return torch.mm(outer, up.t(), out=operands.out)
    return torch.add(operands.base, F.linear(outer, up), out=operands.out)
