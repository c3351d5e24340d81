r"""The mixture over (token, expert) pairs sorted by expert: work grows with `K`, not with `E`.

Pairs are gathered expert by expert, so that each expert's rows lie together:

$$h_p = A_{e(p)} x_{t(p)}, \qquad y_t = W x_t + s \sum_{p : t(p) = t} B_{e(p)} (w_p h_p)$$

Against the stacked form this saves the products with gates of zero and costs a gather of `x`, one of `dy`,
and a sum of `K` wide rows per token. So it pays where `E` is much larger than `K`.

The products run through `torch.nn.functional.grouped_mm` where a check against the plain loop has passed on
this device and dtype and its rule of 16-byte strides is met, else expert by expert over the sorted rows. Kept
for the backward pass: `x`, and `h`, weight and order of the pairs ([N K, r], [N K]), nothing as wide as `o`.
Experts that are not trained cost no `dA` and `dB`. Nothing depends on values but the length of the segments.
"""

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from moe_adapt.kernels.implementations import Implementation, Work, register
from moe_adapt.kernels.problem import Operands, Problem
from moe_adapt.kernels.stacked import no_second_derivative

__all__ = ["forward"]

_ALIGNMENT = 16  # bytes, of every row that grouped_mm reads


class _Segments:
    """Pairs sorted by expert, and products of their rows with each expert's factor.

    Attributes:
        token: Token of each pair, int64 [P].
        slot: Position of each pair in the flat [N K] slots, int64 [P].
        place: Pair of each slot, int64 [N K]; `P` for an empty one.
        shape: `N` and `K`.
        ends: Where each expert's pairs end, `E` numbers.
        grouped: Whether products run through grouped_mm.
    """

    def __init__(self, index: Tensor, experts: int, grouped: bool) -> None:
        flat = index.reshape(-1)
        order = flat.argsort(stable=True)
        counts = torch.bincount(flat.long() + 1, minlength=experts + 1)
        self.slot = order[int(counts[0]) :]
        self.token = self.slot // max(index.shape[1], 1)  # no token has a slot if K = 0
        self.place = torch.full_like(order, len(self.slot))
        self.place[self.slot] = torch.arange(len(self.slot), device=index.device)
        self.shape = index.shape
        self.offsets = counts[1:].cumsum(0).to(torch.int32)
        self.ends: list[int] = self.offsets.tolist()
        self.grouped = grouped

    def ranges(self) -> list[tuple[int, int]]:
        """Return first and last-plus-one pair of each expert."""
        return list(zip([0, *self.ends[:-1]], self.ends, strict=True))

    def rows_times(self, rows: Tensor, factors: Tensor) -> Tensor:
        """Return each pair's row [P, m] times its expert's factor [E, m, n], [P, n]."""
        if self.grouped:
            return F.grouped_mm(rows, factors, offs=self.offsets)
        result = rows.new_empty(len(rows), factors.shape[2])
        for expert, (first, last) in enumerate(self.ranges()):
            if last > first:
                torch.mm(rows[first:last], factors[expert], out=result[first:last])
        return result

    def products(self, left: Tensor, right: Tensor, trained: tuple[bool, ...] | None) -> Tensor:
        """Return `left_e^T right_e` over each expert's pairs, [E, m, n]; zero where not trained."""
        if self.grouped and trained is None:
            return F.grouped_mm(left.t(), right, offs=self.offsets)
        result = left.new_zeros(len(self.ends), left.shape[1], right.shape[1])
        for expert, (first, last) in enumerate(self.ranges()):
            if last > first and (trained is None or trained[expert]):
                torch.mm(left[first:last].t(), right[first:last], out=result[expert])
        return result

    def sum_by_token(self, rows: Tensor) -> Tensor:
        """Return the sum of each token's rows [N, m], slot by slot: no atomics, the same bits every time."""
        if len(rows) < len(self.place):
            rows = torch.cat([rows, rows.new_zeros(1, rows.shape[1])])
        gathered = rows.index_select(0, self.place)
        return gathered if self.shape[1] == 1 else gathered.view(*self.shape, rows.shape[1]).sum(dim=1)


class _Grouped(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        base: Tensor | None,
        a: Tensor,
        b: Tensor,
        weight: Tensor,
        index: Tensor,
        scale: float,
        trainable: tuple[bool, ...] | None,
        grouped: bool,
    ) -> Tensor:
        pairs = _Segments(index, len(a), grouped)
        scaled = (weight.reshape(-1)[pairs.slot] * scale).unsqueeze(1)
        h = pairs.rows_times(x.index_select(0, pairs.token), a.transpose(1, 2))
        ctx.save_for_backward(x, a, b, h, scaled)
        ctx.pairs, ctx.scale, ctx.trainable = pairs, scale, trainable
        ctx.weight = (weight.shape, weight.dtype)
        ctx.base_dtype = None if base is None else base.dtype
        output = pairs.rows_times((h * scaled).to(h.dtype), b.permute(1, 2, 0))
        mixture = pairs.sum_by_token(output)
        return mixture if base is None else base + mixture

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        no_second_derivative()
        x, a, b, h, scaled = ctx.saved_tensors
        pairs: _Segments = ctx.pairs
        (dy,) = grads
        needs_x, needs_base, needs_a, needs_b, needs_weight = ctx.needs_input_grad[:5]
        wide = dy.to(h.dtype).index_select(0, pairs.token)
        da = db = dx = dweight = None
        if needs_b:
            db = pairs.products(wide, (h * scaled).to(h.dtype), ctx.trainable).transpose(0, 1).contiguous()
        if needs_weight or needs_a or needs_x:
            u = pairs.rows_times(wide, b.transpose(0, 1))
            if needs_weight:
                shape, dtype = ctx.weight
                dweight = torch.zeros(shape, dtype=dtype, device=dy.device)
                products = (h * u.to(torch.promote_types(h.dtype, dtype))).sum(dim=1) * ctx.scale
                dweight.view(-1)[pairs.slot] = products.to(dtype)
            dh = (u * scaled).to(h.dtype)
            if needs_a:
                da = pairs.products(dh, x.index_select(0, pairs.token), ctx.trainable)
            if needs_x:
                dx = pairs.sum_by_token(pairs.rows_times(dh, a))
        return dx, dy.to(ctx.base_dtype) if needs_base else None, da, db, dweight, None, None, None, None


def _fits_grouped_mm(problem: Problem) -> bool:
    """Return whether every operand has rows of a multiple of 16 bytes."""
    sizes = (problem.in_features, problem.out_features, problem.rank)
    return all(size * problem.dtype.itemsize % _ALIGNMENT == 0 for size in sizes)


@cache
def grouped_mm_works(device: str, dtype: torch.dtype) -> bool:
    """Return whether grouped_mm gives what a loop gives, in all the forms used here."""
    if not hasattr(F, "grouped_mm") or dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return False
    generator = torch.Generator().manual_seed(0)
    index = torch.tensor([[0], [2], [0], [3], [2], [0]])
    rows, other, b = (
        torch.randn(shape, generator=generator).to(device, dtype) for shape in ((6, 16), (6, 8), (16, 4, 8))
    )
    try:
        ours, loop = (_Segments(index.to(device), 4, grouped) for grouped in (True, False))
        results = [
            (
                pairs.rows_times(rows, b.transpose(0, 1)),
                pairs.rows_times(other, b.permute(1, 2, 0)),
                pairs.products(rows, other, None),
            )
            for pairs in (ours, loop)
        ]
    except (RuntimeError, NotImplementedError):
        return False
    slack = 8 * torch.finfo(dtype).eps
    return all(torch.allclose(one, two, rtol=slack, atol=slack) for one, two in zip(*results, strict=True))


def forward(operands: Operands) -> Tensor:
    """Return the base output plus the mixture, [N, o], in the wider of their types.

    Args:
        operands: What to compute; its routing has an index.
    """
    assert operands.index is not None
    problem = operands.problem()
    grouped = _fits_grouped_mm(problem) and grouped_mm_works(problem.device, problem.dtype)
    base, out = operands.base, operands.out
    mixture = _Grouped.apply(
        operands.x,
        base if out is None else None,
        operands.a,
        operands.b,
        operands.slot_weights(),
        operands.index,
        operands.scale,
        operands.trainable,
        grouped,
    )
    if out is None:
        return mixture
    return out.copy_(mixture) if base is None else torch.add(base, mixture, out=out)


def _work(problem: Problem) -> Work:
    assert problem.slots is not None
    pairs, features = problem.tokens * problem.slots, problem.in_features + problem.out_features
    flop = 2 * pairs * problem.rank * features
    moved = (3 * pairs * features + problem.width * features) * problem.dtype.itemsize
    passes = 3 if problem.trains else 1
    return Work(passes * flop, passes * moved, passes * 12, passes * min(problem.experts, pairs))


def _supports(problem: Problem) -> str:
    return "it needs an index of the experts of each token" if problem.slots is None else ""


def _anywhere(device: str, dtype: torch.dtype) -> str:
    return ""


register(Implementation("grouped", forward, _supports, _anywhere, _work))
