"""The Triton path as an implementation of the operator: what it takes, where it works, what it costs."""

import math
from functools import cache

import torch
from torch import Tensor

from moe_adapt.kernels.implementations import Implementation, Work, register
from moe_adapt.kernels.problem import Operands, Problem
from moe_adapt.kernels.triton.operator import forward as launch
from moe_adapt.kernels.triton.operator import forward_into as launch_into
from moe_adapt.kernels.triton.support import missing, works
from moe_adapt.kernels.triton.tiles import DECODE_TOKENS, MAX_RANK, decodes_at_once, uses_groups

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
    base, scale, out = operands.base, float(operands.scale), operands.out
    if out is not None:
        launch_into(out, x, None if base is out else base, a, b, gates, index, scale, base is out)
        return out
    flags = None if operands.trainable is None else list(operands.trainable)
    return launch(x, base, a, b, gates, index, scale, flags, trains)[0]


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
    rows, size, slots = problem.tokens, problem.dtype.itemsize, problem.slots
    features = problem.in_features + problem.out_features
    decodes = slots is not None and not problem.trains and rows <= DECODE_TOKENS
    sorts = slots is not None and not decodes and uses_groups(slots, problem.experts, problem.rank)
    columns = slots * problem.rank if slots is not None and (decodes or sorts) else problem.width
    experts = problem.experts if slots is None else min(problem.experts, rows * slots)
    factors = (experts * problem.rank if decodes or sorts else problem.width) * features
    passes = slots if slots is not None and sorts else 1
    reads = passes * problem.in_features + 2 * passes * problem.out_features
    flop, forward = (
        2 * rows * columns * features,
        (rows * reads + factors + 2 * rows * columns) * size,
    )
    once = decodes and decodes_at_once(rows, slots or 0, problem.rank, problem.in_features, size)
    calls = 1 if once else 2 if decodes else 11 + passes if sorts else 3
    if not problem.trains:
        return Work(flop, forward, calls)
    reads = 2 * passes * features + (2 * passes - 1) * problem.in_features
    backward = (rows * reads + 3 * factors + 4 * rows * columns) * size + 8 * rows * columns
    return Work(3 * flop, forward + backward, 2 * calls + 4)


register(Implementation("triton", forward, _supports, _available, _work))
