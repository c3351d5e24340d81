"""Whether a result may be written into a given tensor, the `out` of `routed_lora`.

Only without gradients, since autograd may need what was in that memory, and only where nothing is still to be
read: `out` lies apart from all operands, or is `base` itself, each number of which is read where its sum is
written.
"""

from dataclasses import replace

import torch
from torch import Tensor

from moe_adapt.errors import UserError
from moe_adapt.kernels.problem import Operands

__all__ = ["with_checked_out"]


def with_checked_out(operands: Operands) -> Operands:
    """Return operands whose `out` may be written, and whose `base` is `out` if both are the same memory.

    While `torch.compile` traces, addresses are unknown and not compared.

    Args:
        operands: What to compute, in the types in which it is computed.

    Raises:
        UserError: If a gradient may be wanted, or `out` does not fit or overlaps with an operand.
    """
    out = operands.out
    if out is None:
        return operands
    given = {
        name: tensor
        for name in ("x", "base", "a", "b", "gates", "index", "weight")
        if (tensor := getattr(operands, name)) is not None
    }
    if torch.is_grad_enabled():
        for name, tensor in {**given, "out": out}.items():
            if tensor.requires_grad:
                raise UserError(
                    f"out= has no gradient, but {name} requires one; call without out=, or within "
                    "torch.no_grad()."
                )
    _check_form(out, operands)
    if torch.compiler.is_compiling():
        return operands
    base = operands.base
    in_place = base is not None and (base is out or _same_memory(out, base))
    if in_place:
        del given["base"]
    start, stop = _span(out)
    for name, tensor in given.items():
        first, last = _span(tensor)
        if first < stop and start < last:
            raise UserError(f"out overlaps with {name}; give a tensor of its own, or base itself.")
    return replace(operands, base=out) if in_place and base is not out else operands


def _check_form(out: Tensor, operands: Operands) -> None:
    x, base, b = operands.x, operands.base, operands.b
    shape = (x.shape[0], b.shape[0])
    if out.shape != shape:
        raise UserError(f"out has the shape {list(out.shape)}, expected {list(shape)}.")
    dtype = x.dtype if base is None else torch.promote_types(base.dtype, x.dtype)
    if out.dtype != dtype:
        raise UserError(f"out is {out.dtype}, but the result {dtype}; give a tensor of that type.")
    if out.device != x.device:
        raise UserError(f"out is on {out.device} and x on {x.device}; put them on one device.")
    if (shape[1] > 1 and out.stride(1) != 1) or (shape[0] > 1 and out.stride(0) < shape[1]):
        raise UserError(
            f"the rows of out are contiguous and apart, got the strides {list(out.stride())} for the shape "
            f"{list(shape)}; give a contiguous tensor."
        )


def _same_memory(one: Tensor, other: Tensor) -> bool:
    return (
        one.data_ptr() == other.data_ptr()
        and one.dtype == other.dtype
        and all(size < 2 or one.stride(dim) == other.stride(dim) for dim, size in enumerate(one.shape))
    )


def _span(tensor: Tensor) -> tuple[int, int]:
    """Return the address of a tensor and that behind its last number; one address for no numbers."""
    start = tensor.data_ptr()
    if tensor.is_contiguous():
        return start, start + tensor.nbytes
    length = 1 + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    return start, start + length * tensor.element_size()
