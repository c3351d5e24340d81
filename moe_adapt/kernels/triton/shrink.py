"""Into rank space: `h = x A^T` and gates in the forward pass, `u = dy B` and gate gradients in the backward.

Both are one product of a tall matrix [N, L] with a thin one [L, R], read once. If there are too few row tiles
to fill the device, the sum over L is split: each split writes an fp32 plane [N, R], and a second kernel adds
the planes in fixed order, so that two runs give the same bits. No atomics.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from moe_adapt.kernels.triton.blocks import finish_backward, finish_forward, load_tile, multiply
from moe_adapt.kernels.triton.tiles import MIN_TILE, multiprocessors, shrink_tiles

__all__ = ["shrink"]


@triton.jit
def _finish(
    total,
    hidden,
    scaled,
    again,
    dgates,
    gates,
    index,
    rows,
    live,
    columns,
    valid,
    experts,
    first,
    R,
    SLOTS,
    NUM_EXPERTS,
    scale,
    EXPERTS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BACKWARD: tl.constexpr,
    SPARSE: tl.constexpr,
    SAVE: tl.constexpr,
):
    if BACKWARD:
        finish_backward(
            total,
            hidden,
            scaled,
            again,
            dgates,
            gates,
            index,
            rows,
            live,
            columns,
            valid,
            experts,
            first,
            R,
            SLOTS,
            NUM_EXPERTS,
            scale,
            EXPERTS,
            BLOCK_N,
            BLOCK_R,
            SPARSE,
            SAVE,
        )
    else:
        finish_forward(
            total,
            hidden,
            scaled,
            gates,
            index,
            rows,
            live,
            columns,
            valid,
            experts,
            R,
            SLOTS,
            scale,
            BLOCK_N,
            BLOCK_R,
            SPARSE,
            SAVE,
        )


@triton.jit
def _place(
    N,
    R,
    NUM_EXPERTS,
    RANK: tl.constexpr,
    EXPERTS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """Return the first expert of this program's tile, its rows, its columns, and which of them there are."""
    tiles = tl.cdiv(NUM_EXPERTS, EXPERTS)
    first = tl.program_id(0) % tiles * EXPERTS
    rows = (tl.program_id(0) // tiles).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    live = rows < N
    lanes = tl.arange(0, BLOCK_R)
    experts = first + lanes // RANK
    columns = first * RANK + lanes
    valid = (lanes < EXPERTS * RANK) & (columns < R)
    return first, rows, live, columns, valid, experts


@triton.jit
def shrink_kernel(
    x,
    w,
    planes,
    hidden,
    scaled,
    again,
    dgates,
    gates,
    index,
    N,
    L,
    R,
    SLOTS,
    NUM_EXPERTS,
    CHUNK,
    scale,
    stride_xn,
    stride_xl,
    stride_wr,
    stride_wl,
    RANK: tl.constexpr,
    EXPERTS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_L: tl.constexpr,
    SPLIT: tl.constexpr,
    BACKWARD: tl.constexpr,
    SPARSE: tl.constexpr,
    SAVE: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Multiply one row tile of `x` with the factors of one tile of experts, over one part of the sum."""
    first, rows, live, columns, valid, experts = _place(N, R, NUM_EXPERTS, RANK, EXPERTS, BLOCK_N, BLOCK_R)
    start = tl.program_id(1) * CHUNK
    stop = tl.minimum(start + CHUNK, L)
    total = tl.zeros((BLOCK_N, BLOCK_R), dtype=tl.float32)
    for at in range(start, stop, BLOCK_L):
        inner = at + tl.arange(0, BLOCK_L)
        inside = inner < stop
        left = load_tile(
            x + rows[:, None] * stride_xn + inner[None, :] * stride_xl,
            live[:, None] & inside[None, :],
            UPCAST,
        )
        right = load_tile(
            w + inner[:, None] * stride_wl + columns[None, :] * stride_wr,
            inside[:, None] & valid[None, :],
            UPCAST,
        )
        total = multiply(left, right, total)
    if SPLIT:
        places = (tl.program_id(1).to(tl.int64) * N + rows)[:, None] * R + columns[None, :]
        tl.store(planes + places, total, mask=live[:, None] & valid[None, :])
    else:
        _finish(
            total,
            hidden,
            scaled,
            again,
            dgates,
            gates,
            index,
            rows,
            live,
            columns,
            valid,
            experts,
            first,
            R,
            SLOTS,
            NUM_EXPERTS,
            scale,
            EXPERTS,
            BLOCK_N,
            BLOCK_R,
            BACKWARD,
            SPARSE,
            SAVE,
        )


@triton.jit
def add_planes_kernel(
    planes,
    hidden,
    scaled,
    again,
    dgates,
    gates,
    index,
    N,
    R,
    SLOTS,
    NUM_EXPERTS,
    SPLITS,
    scale,
    RANK: tl.constexpr,
    EXPERTS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BACKWARD: tl.constexpr,
    SPARSE: tl.constexpr,
    SAVE: tl.constexpr,
):
    """Add the planes of one tile in order and finish it."""
    first, rows, live, columns, valid, experts = _place(N, R, NUM_EXPERTS, RANK, EXPERTS, BLOCK_N, BLOCK_R)
    total = tl.zeros((BLOCK_N, BLOCK_R), dtype=tl.float32)
    for plane in range(SPLITS):
        places = (rows + plane * N)[:, None] * R + columns[None, :]
        total += tl.load(planes + places, mask=live[:, None] & valid[None, :], other=0.0)
    _finish(
        total,
        hidden,
        scaled,
        again,
        dgates,
        gates,
        index,
        rows,
        live,
        columns,
        valid,
        experts,
        first,
        R,
        SLOTS,
        NUM_EXPERTS,
        scale,
        EXPERTS,
        BLOCK_N,
        BLOCK_R,
        BACKWARD,
        SPARSE,
        SAVE,
    )


def shrink(
    x: Tensor,
    factor: Tensor,
    by_rank: bool,
    rank: int,
    gates: Tensor,
    index: Tensor | None,
    scale: float,
    hidden: Tensor,
    upcast: bool,
    backward: bool = False,
    dgates: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return `z = s g h` [N, R] in the dtype of `x`, and in the backward pass `dh = s g u`, too.

    Args:
        x: `x` [N, d] in the forward pass, `dy` [N, o] in the backward pass; any strides.
        factor: `A` [E, r, d] or `B` [o, E, r], contiguous.
        by_rank: Whether the factor is laid out as `A`.
        rank: Rank `r` of each expert.
        gates: Gates [N, E], or weights [N, K]; contiguous.
        index: Experts of the weights, int32 [N, K], contiguous; None for dense gates.
        scale: The LoRA scale `s`.
        hidden: Forward: where to save `h`, fp32 [N, R], or empty. Backward: the saved `h`.
        upcast: Whether the interpreter runs and must not see bf16.
        backward: Whether this is the backward pass.
        dgates: Backward: where to write the gradient of `gates`; None leaves it out.

    Returns:
        `z`, and `dh` (in the forward pass `z` again).
    """
    tokens, length = x.shape
    columns = factor.numel() // length
    experts = columns // rank
    tiles = shrink_tiles(tokens, length, experts, rank, x.element_size(), multiprocessors(x.device))
    chunk = triton.cdiv(triton.cdiv(length, tiles.splits), tiles.features) * tiles.features
    splits = triton.cdiv(length, chunk)
    z = torch.empty(tokens, columns, dtype=x.dtype, device=x.device)
    scaled = torch.empty_like(z) if backward else z
    planes = z
    if splits > 1:
        planes = torch.empty(splits, tokens, columns, dtype=torch.float32, device=x.device)
    experts_per_tile = tiles.ranks // rank
    expert_tiles = triton.cdiv(experts, experts_per_tile)
    slots = gates.shape[1]
    buffers = (hidden, scaled, z, z if dgates is None else dgates, gates, gates if index is None else index)
    flags = {
        "RANK": rank,
        "EXPERTS": experts_per_tile,
        "BLOCK_R": tiles.ranks,
        "BACKWARD": backward,
        "SPARSE": index is not None,
        "SAVE": dgates is not None if backward else hidden.numel() > 0,
    }
    shrink_kernel[(triton.cdiv(tokens, tiles.rows) * expert_tiles, splits)](
        x, factor, planes, *buffers, tokens, length, columns, slots, experts, chunk, scale, x.stride(0),
        x.stride(1), *((length, 1) if by_rank else (1, columns)), BLOCK_N=tiles.rows,
        BLOCK_L=tiles.features, SPLIT=splits > 1, UPCAST=upcast, num_warps=tiles.warps,
        num_stages=tiles.stages, **flags,
    )  # fmt: skip
    if splits > 1:
        add_planes_kernel[(triton.cdiv(tokens, MIN_TILE) * expert_tiles,)](
            planes, *buffers, tokens, columns, slots, experts, splits, scale, BLOCK_N=MIN_TILE, num_warps=4,
            **flags,
        )  # fmt: skip
    return z, scaled
