"""The Triton path as an implementation of the operator: what it takes, where it works, what it costs."""

import math
from functools import cache

import torch
from torch import Tensor

from moe_adapt.kernels.implementations import Implementation, Work, register
from moe_adapt.kernels.problem import Operands, Problem
from moe_adapt.kernels.triton import operator
from moe_adapt.kernels.triton.support import missing, works
from moe_adapt.kernels.triton.tiles import DECODE_TOKENS, MAX_RANK

__all__ = ["forward"]


def forward(operands: Operands) -> Tensor:
    """Return the base output plus the mixture, [N, o], in the wider of their types.

    Two runs give the same bits, forward and backward.

    Args:
        operands: What to compute.
    """
    x, a, b = operands.x, operands.a, operands.b
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, a, b = x.to(dtype), a.to(dtype), b.to(dtype)
    trains = operands.problem().trains
    gates, index = operands.gates, operands.index
    if gates is None or (index is not None and not trains and len(x) <= DECODE_TOKENS):
        assert index is not None
        gates = operands.slot_weights() if operands.weight is None else operands.weight
        index = index.to(torch.int32)
    else:
        index = None
    flags = None if operands.trainable is None else list(operands.trainable)
    return operator.forward(x, operands.base, a, b, gates, index, float(operands.scale), flags, trains)[0]


def _supports(problem: Problem) -> str:
    if problem.rank > MAX_RANK:
        return f"its experts have at most rank {MAX_RANK}, not {problem.rank}"
    if problem.width * max(problem.in_features, problem.out_features) >= 2**31:
        return "the factors of its experts have fewer than 2**31 numbers"
    return ""


@cache
def _checked(device: str, dtype: torch.dtype) -> str:
    return missing(device, dtype) or works(forward, device, dtype)


def _available(device: str, dtype: torch.dtype) -> str:
    return _checked(device, dtype)


# What `torch.compiler.assume_constant_result` does, without its import of the whole compiler: the check runs
# while a graph is traced and is no part of it.
_available._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _work(problem: Problem) -> Work:
    if problem.device != "cuda":
        return Work(math.inf, math.inf, math.inf)  # the interpreter is for tests
    rows, width, size = problem.tokens, problem.width, problem.dtype.itemsize
    features = problem.in_features + problem.out_features
    flop = 2 * rows * width * features
    moved = (rows * (features + problem.out_features) + width * features) * size + 2 * rows * width * size
    if not problem.trains:
        return Work(flop, moved, 3)
    back = (2 * rows * features + rows * problem.in_features + 3 * width * features) * size
    return Work(3 * flop, moved + back + rows * width * (8 + 4 * size), 11)


register(Implementation("triton", forward, _supports, _available, _work))
