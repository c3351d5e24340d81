"""`routed_lora`: the gated sum of many LoRA experts on one shared linear layer, with all gradients."""

import math
import os
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from moe_adapt.errors import UserError
from moe_adapt.kernels.destination import with_checked_out
from moe_adapt.kernels.dispatch import choose
from moe_adapt.kernels.implementations import find
from moe_adapt.kernels.problem import Operands
from moe_adapt.kernels.shared import forward as forward_shared

__all__ = ["CHECK_VARIABLE", "routed_lora"]

#: Environment variable that switches the check of values on (1) or off (0) on every device.
CHECK_VARIABLE = "MOE_ADAPT_CHECK"


def routed_lora(
    x: Tensor,
    base: Tensor | None,
    a: Tensor,
    b: Tensor,
    scale: float,
    *,
    gates: Tensor | None = None,
    index: Tensor | None = None,
    weight: Tensor | None = None,
    trainable: Sequence[bool] | Tensor | None = None,
    deterministic: bool = True,
    impl: str = "auto",
    out: Tensor | None = None,
) -> Tensor:
    r"""Return `base + s sum_e g_e B_e A_e x` for every token.

    Routing comes in one of three forms: `gates` for any number of experts per token; `index` and `weight` for
    at most `K` of them (an expert listed twice counts with the sum of its weights); or `gates` and `index`
    where gates outside the index are zero and need no gradient.

    Under autocast the experts compute in autocast's type, as PEFT's LoRA does; otherwise in the type of `a`.
    Values (finite gates, valid indices) are checked on the CPU; on other devices reading them would stall, so
    there only if the environment variable ``MOE_ADAPT_CHECK`` is 1.

    Args:
        x: Tokens, [N, d].
        base: Output of the frozen layer, [N, o]; None for nothing.
        a: Down-projections, [E, r, d]; [1, r, d] for experts that share one, which is not copied then.
        b: Up-projections, [o, E, r].
        scale: The LoRA scale `s`.
        gates: Weight of each expert, [N, E].
        index: Expert of each slot, int [N, K]; -1 for an empty slot. A token without experts keeps exactly
            its base output.
        weight: Weight of each slot, [N, K].
        trainable: Whether each expert is trained, [E]; the factors of the others get a zero gradient, at no
            cost. None trains all.
        deterministic: Whether a repeated call has to give the same bits.
        impl: Name of the implementation; ``"auto"`` takes that of the environment variable
            ``MOE_ADAPT_KERNEL``, or else the one that `dispatch` expects to be fastest.
        out: Where the result goes, [N, o] in the type of the result, rows contiguous; may be `base` itself,
            which it then replaces. Only without gradients. None for a new tensor.

    Returns:
        The sum, [N, o], in the wider of the types of `base` and of the experts; `out` if it was given.

    Raises:
        UserError: If shapes, types, devices or values do not fit, the named implementation cannot take
            this problem, or `out` overlaps with an operand or is given where a gradient may be wanted.

    >>> x, a, b = torch.ones(1, 2), torch.ones(3, 1, 2), torch.ones(2, 3, 1)
    >>> routed_lora(x, torch.zeros(1, 2), a, b, 2.0, gates=torch.tensor([[1.0, 0.5, 0.0]]))
    tensor([[6., 6.]])
    >>> routed_lora(x, None, a, b, 2.0, index=torch.tensor([[2, -1]]), weight=torch.tensor([[0.5, 9.0]]))
    tensor([[2., 2.]])
    """
    _check_shapes(x, base, a, b, gates, index, weight)
    if _checks_values(x):
        _check_values(b.shape[1], gates, index, weight)
    flags = _as_flags(trainable, b.shape[1])
    operands = Operands(x, base, a, b, scale, gates, index, weight, flags, deterministic, out)
    device = x.device.type
    if torch.is_autocast_enabled(device) and (b.shape[1] > 1 or out is not None):
        dtype = torch.get_autocast_dtype(device)
        with torch.autocast(device, enabled=False):
            return _run(_cast(operands, dtype), impl)
    return _run(operands, impl)


def _run(operands: Operands, impl: str) -> Tensor:
    operands = with_checked_out(operands)
    if operands.shares_a:
        if impl == "auto" and operands.trainable is None:
            return forward_shared(operands)
        operands = replace(operands, a=operands.a.expand(operands.b.shape[1], -1, -1))
    return find(choose(operands.problem(), impl)).forward(operands)


def _cast(operands: Operands, dtype: torch.dtype) -> Operands:
    x, a, b = (tensor.to(dtype) for tensor in (operands.x, operands.a, operands.b))
    return replace(operands, x=x, a=a, b=b)


def _as_flags(trainable: Sequence[bool] | Tensor | None, experts: int) -> tuple[bool, ...] | None:
    if trainable is None:
        return None
    flags = tuple(bool(flag) for flag in (trainable.tolist() if isinstance(trainable, Tensor) else trainable))
    if len(flags) != experts:
        raise UserError(f"trainable has one flag per expert, got {len(flags)} flags for {experts} experts.")
    return None if all(flags) else flags


def _check_shapes(
    x: Tensor,
    base: Tensor | None,
    a: Tensor,
    b: Tensor,
    gates: Tensor | None,
    index: Tensor | None,
    weight: Tensor | None,
) -> None:
    if x.ndim != 2 or a.ndim != 3 or b.ndim != 3:
        raise UserError(
            f"routed_lora takes x [N, d], a [E, r, d] and b [o, E, r], got x {_shape(x)}, a {_shape(a)} and "
            f"b {_shape(b)}."
        )
    (downs, rank, features), experts = a.shape, b.shape[1]
    if downs not in (1, experts) or b.shape[2] != rank or x.shape[1] != features:
        raise UserError(
            f"x [N, d], a [E, r, d] and b [o, E, r] do not fit together: x is {_shape(x)}, a is {_shape(a)}, "
            f"b is {_shape(b)}."
        )
    if downs == 0 or experts == 0 or rank == 0:
        raise UserError(f"routed_lora needs at least one expert of rank one, got a {_shape(a)}.")
    if (gates is None) == (weight is None) or (weight is not None and index is None):
        raise UserError(
            "routing is given as gates [N, E], as gates and index, or as index and weight [N, K]."
        )
    tokens = x.shape[0]
    expected = {"base": (base, (tokens, b.shape[0])), "gates": (gates, (tokens, experts))}
    if index is not None:
        if index.ndim != 2 or index.is_floating_point() or index.dtype == torch.bool:
            raise UserError(f"index is an integer tensor [N, K], got {index.dtype} {_shape(index)}.")
        expected |= {"index": (index, (tokens, index.shape[1])), "weight": (weight, (tokens, index.shape[1]))}
    for name, (tensor, shape) in expected.items():
        if tensor is not None and tensor.shape != shape:
            raise UserError(f"{name} has the shape {_shape(tensor)}, expected {list(shape)}.")
    for name, tensor in (
        ("base", base),
        ("a", a),
        ("b", b),
        ("gates", gates),
        ("index", index),
        ("weight", weight),
    ):
        if tensor is not None and tensor.device != x.device:
            raise UserError(f"{name} is on {tensor.device} and x on {x.device}; put them on one device.")
    if not a.is_floating_point() or x.dtype != a.dtype or b.dtype != a.dtype:
        raise UserError(
            f"x, a and b have one floating-point type, got {x.dtype}, {a.dtype} and {b.dtype}; cast x to the "
            "type of the experts, or the experts to that of x."
        )


def _checks_values(x: Tensor) -> bool:
    wanted = os.environ.get(CHECK_VARIABLE)
    if torch.compiler.is_compiling():
        return False
    return x.device.type == "cpu" if wanted is None else wanted == "1"


def _check_values(experts: int, gates: Tensor | None, index: Tensor | None, weight: Tensor | None) -> None:
    for name, values in (("gates", gates), ("weight", weight)):
        # The sum is finite only if all values are, and takes one pass.
        if values is not None and not math.isfinite(values.detach().sum(dtype=torch.float64).item()):
            if name == "weight" and index is not None:
                values = values.detach().masked_fill(index < 0, 0)
            if not values.isfinite().all():
                raise UserError(f"{name} are not all finite; look at the router's logits and learning rate.")
    if index is not None and index.numel():
        low, high = (int(bound) for bound in index.aminmax())
        if low < -1 or high >= experts:
            wrong = low if low < -1 else high
            raise UserError(
                f"index names the expert {wrong}, but there are {experts}: use 0 to {experts - 1}, or "
                "-1 for an empty slot."
            )


def _shape(tensor: Tensor) -> list[int]:
    return list(tensor.shape)
