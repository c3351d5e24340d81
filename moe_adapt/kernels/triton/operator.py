"""The Triton path as `torch.library` operators: forward, backward, and forward into a given tensor.

PyTorch sees each as one node: `torch.compile` captures it without looking inside, `opcheck` verifies it. None
returns its inputs, and only `forward_into`, which has no gradient, changes one. (`triton_op` would let the
compiler look inside, but does not compile under the interpreter.) Autocast does not reach custom operators;
who calls them casts.

The operators take checked input. Kernels are imported at the first launch, so that this module needs no
triton.
"""

from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from moe_adapt.kernels.triton.tiles import DECODE_TOKENS, uses_groups

__all__ = ["backward", "forward", "forward_into"]


def _prepared(matrix: Tensor) -> Tensor:
    """Return a matrix whose columns lie side by side, or all in one place (an expanded gradient)."""
    return matrix if matrix.stride(1) in (0, 1) else matrix.contiguous()


def _on(device: torch.device) -> AbstractContextManager:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


@lru_cache(maxsize=256)
def _flags(trainable: tuple[bool, ...], device: torch.device) -> Tensor:
    """Return the flags on a device; kept, because a graph that is being captured cannot copy them."""
    return torch.tensor(trainable, device=device)


def _result(x: Tensor, base: Tensor | None, b: Tensor) -> Tensor:
    dtype = x.dtype if base is None else torch.promote_types(base.dtype, x.dtype)
    return torch.empty(x.shape[0], b.shape[0], dtype=dtype, device=x.device)


def _hidden(x: Tensor, a: Tensor, gates: Tensor, index: Tensor | None, save: bool) -> Tensor:
    experts, rank, _ = a.shape
    sorts = index is not None and uses_groups(gates.shape[1], experts, rank)
    columns = (gates.shape[1] if sorts else experts) * rank
    return torch.empty(x.shape[0] if save else 0, columns, dtype=torch.float32, device=x.device)


@torch.library.custom_op("moe_adapt::triton_forward", mutates_args=())
def forward(
    x: Tensor, base: Tensor | None, a: Tensor, b: Tensor, gates: Tensor, index: Tensor | None, scale: float,
    trainable: list[bool] | None, save: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return `y` [N, o] and, if it is to be saved for the backward pass, `h` in fp32 (else empty).

    `h` is [N, R], or [N, K r] if tokens are sorted by expert.

    Args:
        x: Tokens, [N, d].
        base: Output of the frozen layer, [N, o]; None adds nothing.
        a: Down-projections, [E, r, d], in the dtype of `x`.
        b: Up-projections, [o, E, r], in the dtype of `x`.
        gates: Gates [N, E], or weights [N, K] if there is an index.
        index: Expert of each weight, int32 [N, K]; -1 for none.
        scale: The LoRA scale `s`.
        trainable: Which experts get a weight gradient in the backward pass; None means all.
        save: Whether there will be a backward pass.
    """
    y, hidden = _result(x, base, b), _hidden(x, a, gates, index, save)
    _compute(x, base, a, b, gates, index, scale, save, hidden, y)
    return y, hidden


def _compute(
    x: Tensor, base: Tensor | None, a: Tensor, b: Tensor, gates: Tensor, index: Tensor | None, scale: float,
    save: bool, hidden: Tensor, y: Tensor,
) -> None:  # fmt: skip
    """Write `y`, which may be `base`, and `hidden` if it is to be saved."""
    from moe_adapt.kernels.triton.decode import decode
    from moe_adapt.kernels.triton.paths import path

    if not len(x):
        return
    x, base = _prepared(x), None if base is None else _prepared(base)
    a, b, gates = a.contiguous(), b.contiguous(), gates.contiguous()
    index = None if index is None else index.contiguous()
    with _on(x.device):
        if index is not None and not save and len(x) <= DECODE_TOKENS:
            decode(x, a, b, gates, index, scale, base, y)
        else:
            way = path(a, gates, index, scale)
            z, _ = way.shrink(x, a, True, hidden, False, None)
            way.expand(z, b, False, base, y)


@forward.register_fake
def _forward_fake(x, base, a, b, gates, index, scale, trainable, save):
    return _result(x, base, b), _hidden(x, a, gates, index, save)


@torch.library.custom_op("moe_adapt::triton_forward_into", mutates_args=("out",))
def forward_into(
    out: Tensor, x: Tensor, base: Tensor | None, a: Tensor, b: Tensor, gates: Tensor, index: Tensor | None,
    scale: float, add: bool,
) -> None:  # fmt: skip
    """Write `y` into `out` [N, o], whose rows are contiguous. No gradient.

    PyTorch must not see a tensor twice, read and written; so for a `base` that is `out`, give None and `add`.

    Args:
        out: Where the result goes, in the wider of the types of `base` and `x`.
        x: Tokens, [N, d].
        base: Output of the frozen layer, [N, o]; None for nothing, or if it is in `out`.
        a: Down-projections, [E, r, d], in the dtype of `x`.
        b: Up-projections, [o, E, r], in the dtype of `x`.
        gates: Gates [N, E], or weights [N, K] if there is an index.
        index: Expert of each weight, int32 [N, K]; -1 for none.
        scale: The LoRA scale `s`.
        add: Whether the result is added to what is in `out`.
    """
    hidden = _hidden(x, a, gates, index, False)
    _compute(x, out if add else base, a, b, gates, index, scale, False, hidden, out)


@forward_into.register_fake
def _forward_into_fake(out, x, base, a, b, gates, index, scale, add):
    return None


@torch.library.custom_op("moe_adapt::triton_backward", mutates_args=())
def backward(
    dy: Tensor, x: Tensor, a: Tensor, b: Tensor, gates: Tensor, index: Tensor | None, hidden: Tensor,
    scale: float, trainable: list[bool] | None, wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of `x`, `a`, `b` and `gates`; one that is not wanted is an empty tensor.

    Args:
        dy: Gradient of `y` in the dtype of `x`, [N, o].
        x: Tokens, [N, d].
        a: Down-projections, [E, r, d].
        b: Up-projections, [o, E, r].
        gates: Gates [N, E], or weights [N, K].
        index: Expert of each weight; None for dense gates.
        hidden: `h` as saved by `forward`.
        scale: The LoRA scale `s`.
        trainable: Which experts get a weight gradient; None means all.
        wanted: Which of the four gradients to compute.
    """
    from moe_adapt.kernels.triton.paths import path

    want_x, want_a, want_b, want_gates = wanted
    dx, da, db, dgates = _gradients(x, a, b, gates, wanted)
    if not len(x):
        return dx, da.zero_(), db.zero_(), dgates
    x, dy, a, b, gates = _prepared(x), _prepared(dy), a.contiguous(), b.contiguous(), gates.contiguous()
    index = None if index is None else index.contiguous()
    flags = None if trainable is None else _flags(tuple(trainable), x.device)
    with _on(x.device):
        way = path(a, gates, index, scale)
        z, dh = way.shrink(dy, b, False, hidden, True, dgates if want_gates else None)
        if want_x:
            way.expand(dh, a, True, None, dx)
        if want_a:
            way.gradient(dh, x, True, da, flags)
        if want_b:
            way.gradient(z, dy, False, db, flags)
    return dx, da, db, dgates


def _gradients(
    x: Tensor, a: Tensor, b: Tensor, gates: Tensor, wanted: list[bool]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dx, da, db, dgates = (
        torch.empty(tensor.shape if want else (0,), dtype=tensor.dtype, device=x.device)
        for tensor, want in zip((x, a, b, gates), wanted, strict=True)
    )
    return dx, da, db, dgates


@backward.register_fake
def _backward_fake(dy, x, a, b, gates, index, hidden, scale, trainable, wanted):
    return _gradients(x, a, b, gates, wanted)


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    x, base, a, b, gates, index, scale, trainable, _ = inputs
    ctx.save_for_backward(x, a, b, gates, index, output[1])
    ctx.set_materialize_grads(False)
    ctx.scale, ctx.trainable = scale, trainable
    ctx.base_dtype = None if base is None else base.dtype


def _differentiate(ctx: Any, dy: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if dy is None:
        return (None,) * 9
    x, a, b, gates, index, hidden = ctx.saved_tensors
    needs_x, needs_base, *needs_rest = ctx.needs_input_grad[:5]
    wanted = [needs_x, *needs_rest]
    found: list[Tensor | None] = [None] * 4
    if any(wanted):
        gradients = backward(dy.to(x.dtype), x, a, b, gates, index, hidden, ctx.scale, ctx.trainable, wanted)
        found = [gradient if want else None for gradient, want in zip(gradients, wanted, strict=True)]
    return found[0], dy.to(ctx.base_dtype) if needs_base else None, *found[1:], None, None, None, None


forward.register_autograd(_differentiate, setup_context=_setup_context)
