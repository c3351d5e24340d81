r"""The mixture as one LoRA of rank `R = E r` whose hidden vector is scaled per token: two matrix products.

$$h = A_{cat} x, \qquad z = s\,(g \otimes 1_r) \odot h, \qquad y = W x + B_{cat} z$$

for every routing rule, without sort, gather or loop. With `A` [E, r, d] and `B` [o, E, r] both factors are
views, and so are the gradients. Backward, with `u = B_cat^T dy`,

$$dg_e = s \langle h_e, u_e \rangle, \quad dh = s\,(g \otimes 1_r) \odot u, \quad dA = dh^T x, \quad
dB = dy^T z$$

The gate's gradient never leaves rank space: exact at `g = 0`, nothing divided by a gate, no [N, E, o] tensor.
Kept for the backward pass: `x`, which the layer keeps anyway, and two tensors [N, R], `h` and the gates.
Experts that are not trained cost no `dA` and `dB`.

The two halves are separate functions because the router stands between them: its logits are `E` more rows of
the first product.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from moe_adapt.kernels.implementations import Implementation, Work, register
from moe_adapt.kernels.problem import Operands, Problem

__all__ = ["expand", "forward", "no_second_derivative", "shrink"]


def _trained_columns(trainable: Sequence[bool] | None, rank: int) -> slice | list[int] | None:
    """Return the columns of `R` that belong to trained experts; None for all, a slice where one will do."""
    if trainable is None or all(trainable):
        return None
    experts = [expert for expert, trained in enumerate(trainable) if trained]
    if experts and experts[-1] - experts[0] >= len(experts):
        return [expert * rank + row for expert in experts for row in range(rank)]
    return slice(experts[0] * rank, (experts[-1] + 1) * rank) if experts else slice(0, 0)


def _spread(gates: Tensor, scale: float, rank: int) -> Tensor:
    """Return `s g` for each column, [N, R]: a product that broadcasts over `r` is several times slower."""
    tokens, experts = gates.shape
    return (gates * scale).unsqueeze(-1).expand(-1, -1, rank).reshape(tokens, experts * rank)


def _add_up(base: Tensor | None, z: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """Return `base + z B_cat^T`, [N, o]; into `out` without another of that size, unless `z` is narrower."""
    up = b.reshape(len(b), z.shape[1]).t()
    if base is None:
        return torch.mm(z, up, out=out)
    if base.dtype == z.dtype:
        return torch.addmm(base, z, up, out=out)
    if out is not None and out.dtype == z.dtype:
        return torch.mm(z, up, out=out).add_(base)
    return torch.add(base, z @ up, out=out)


def no_second_derivative() -> None:
    """Raise in a backward pass that is itself differentiated."""
    if torch.is_grad_enabled():
        raise RuntimeError("this kernel has no second derivative; use impl='reference'.")


class _Shrink(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, a: Tensor, rows: Tensor | None, trainable: Sequence[bool] | None
    ) -> tuple[Tensor, Tensor | None]:
        width = a.shape[0] * a.shape[1]
        down = a.reshape(width, a.shape[2])
        if rows is not None:
            down = torch.cat([down, rows])
        ctx.save_for_backward(x, down)
        ctx.shape, ctx.trainable = a.shape, trainable
        both = F.linear(x, down)
        return (both, None) if rows is None else (both[:, :width], both[:, width:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        no_second_derivative()
        x, down = ctx.saved_tensors
        dh, dlogits = grads
        assert dh is not None
        needs_x, needs_a, needs_rows, _ = ctx.needs_input_grad
        width = dh.shape[1]
        both = dh if dlogits is None else torch.cat([dh, dlogits], dim=1)
        dx = both @ down if needs_x else None
        da = drows = None
        columns = _trained_columns(ctx.trainable, ctx.shape[1])
        if needs_a and columns is None:
            ddown = both.t() @ x
            da, drows = ddown[:width], ddown[width:]
        elif needs_a:
            da = torch.zeros_like(down[:width])
            da[columns] = dh[:, columns].t() @ x
        if needs_rows and drows is None:
            assert dlogits is not None
            drows = dlogits.t() @ x
        return dx, None if da is None else da.view(ctx.shape), drows if needs_rows else None, None


class _Expand(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        base: Tensor | None,
        h: Tensor,
        b: Tensor,
        gates: Tensor,
        scale: float,
        trainable: Sequence[bool] | None,
    ) -> Tensor:
        weights = _spread(gates, scale, b.shape[2])
        ctx.save_for_backward(h, b, weights)
        ctx.scale, ctx.trainable, ctx.gates_dtype = scale, trainable, gates.dtype
        ctx.base_dtype = None if base is None else base.dtype
        return _add_up(base, (h * weights).to(h.dtype), b)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        no_second_derivative()
        h, b, weights = ctx.saved_tensors
        (dy,) = grads
        out, experts, rank = b.shape
        needs_base, needs_h, needs_b, needs_gates, _, _ = ctx.needs_input_grad
        inner = dy.to(h.dtype)
        dh = db = dgates = None
        if needs_b:
            columns = _trained_columns(ctx.trainable, rank)
            z = (h * weights).to(h.dtype)
            if columns is None:
                db = inner.t() @ z
            else:
                db = torch.zeros(out, experts * rank, dtype=b.dtype, device=b.device)
                db[:, columns] = inner.t() @ z[:, columns]
            db = db.view(b.shape)
        if needs_h or needs_gates:
            u = inner @ b.reshape(out, experts * rank)
            if needs_gates:
                products = h * u.to(torch.promote_types(h.dtype, ctx.gates_dtype))
                dgates = products.view(-1, experts, rank).sum(dim=-1).mul_(ctx.scale).to(ctx.gates_dtype)
            if needs_h:
                dh = (u * weights).to(h.dtype)
        return dy.to(ctx.base_dtype) if needs_base else None, dh, db, dgates, None, None


def shrink(
    x: Tensor, a: Tensor, rows: Tensor | None = None, trainable: Sequence[bool] | None = None
) -> tuple[Tensor, Tensor | None]:
    """Return hidden vectors, and router logits from the same matrix product.

    A router with its own product reads `x`, and writes its gradient, a second time; for a few rows that costs
    more than the arithmetic.

    Args:
        x: Tokens, [N, d].
        a: Down-projections, [E, r, d].
        rows: Router rows, [E', d], or None.
        trainable: Whether each expert is trained; None for all.

    Returns:
        `A_cat x` [N, E r], and `rows x` [N, E'] or None.
    """
    return _Shrink.apply(x, a, rows, trainable)


def expand(
    base: Tensor | None,
    h: Tensor,
    b: Tensor,
    gates: Tensor,
    scale: float,
    trainable: Sequence[bool] | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Return the base output plus the gated sum of the experts' outputs for their hidden vectors, [N, o].

    Args:
        base: Output of the frozen layer, [N, o]; None for nothing.
        h: What `shrink` gave, [N, E r].
        b: Up-projections, [o, E, r].
        gates: Weight of each expert for each token, [N, E].
        scale: The LoRA scale `s`.
        trainable: Whether each expert is trained; None for all.
        out: Where the result goes, [N, o], possibly `base`; None for a new tensor. Without gradients.
    """
    if out is not None:
        return _add_up(base, (h * _spread(gates, scale, b.shape[2])).to(h.dtype), b, out)
    return _Expand.apply(base, h, b, gates, scale, trainable)


def forward(operands: Operands) -> Tensor:
    """Return the base output plus the mixture, [N, o], in the wider of their types.

    Args:
        operands: What to compute.
    """
    h, _ = shrink(operands.x, operands.a, None, operands.trainable)
    gates, scale = operands.dense_gates(), operands.scale
    return expand(operands.base, h, operands.b, gates, scale, operands.trainable, operands.out)


def _work(problem: Problem) -> Work:
    rows, features = problem.tokens, problem.in_features + problem.out_features
    flop = 2 * rows * problem.width * features
    moved = (rows * (features + problem.out_features) + problem.width * features) * problem.dtype.itemsize
    hidden = 4 * rows * problem.width * problem.dtype.itemsize
    passes = 3 if problem.trains else 1
    return Work(passes * flop, passes * moved, passes * 4, hidden=passes * hidden)


def _anything(problem: Problem) -> str:
    return ""


def _anywhere(device: str, dtype: torch.dtype) -> str:
    return ""


register(Implementation("stacked", forward, _anything, _anywhere, _work))
