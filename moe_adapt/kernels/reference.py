r"""The operator as its definition reads, expert by expert: the truth for tests, and what one expert runs.

$$y = W x + \sum_e s\, B_e (g_e A_e x)$$

For one expert with gate 1 this is PEFT's LoRA with the same order of operations (scale last, then the sum),
and so bit-equal to it. Works in float64 and differentiates twice.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from moe_adapt.kernels.implementations import Implementation, Work, register
from moe_adapt.kernels.problem import Operands, Problem

__all__ = ["forward"]


def forward(operands: Operands) -> Tensor:
    """Return the base output plus the mixture, [N, o], in the wider of their types.

    Args:
        operands: What to compute.
    """
    gates, result = operands.dense_gates(), operands.base
    for expert, (down, up) in enumerate(zip(operands.a.unbind(0), operands.b.unbind(1), strict=True)):
        if operands.trainable is not None and not operands.trainable[expert]:
            down, up = down.detach(), up.detach()
        hidden = F.linear(operands.x, down)
        output = F.linear(hidden * gates[:, expert : expert + 1].to(hidden.dtype), up) * operands.scale
        if result is not None:
            result = torch.add(result, output, out=operands.out)
        else:
            result = output if operands.out is None else operands.out.copy_(output)
    assert result is not None
    return result


def _work(problem: Problem) -> Work:
    passes = 3 if problem.trains else 1
    rows, features = problem.tokens, problem.in_features + problem.out_features
    moved = rows * features * problem.experts * problem.dtype.itemsize
    return Work(
        2 * rows * problem.width * features * passes, 4 * moved * passes, 5 * problem.experts * passes
    )


def _anything(problem: Problem) -> str:
    return ""


def _anywhere(device: str, dtype: torch.dtype) -> str:
    return ""


register(Implementation("reference", forward, _anything, _anywhere, _work))
