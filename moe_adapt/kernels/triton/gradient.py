"""Weight gradients: `dA = dh^T x` and `dB^T = z^T dy`, sums over tokens.

Each tile of the result has one owner, which goes through the tokens. With too few tiles to fill the device,
the tokens are split over owners, which write fp32 planes that a second kernel adds in fixed order. An owner
whose experts are all frozen writes zeros and reads nothing.

`z` is not kept from the forward pass: the kernel that reads `h` for the gate gradients writes it again.
Forming it here instead costs as many bytes, but the loop over slots keeps the compiler from pipelining the
loads and makes it spill registers.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from moe_adapt.kernels.triton.blocks import load_tile, multiply
from moe_adapt.kernels.triton.tiles import gradient_tiles, multiprocessors

__all__ = ["weight_gradient"]


@triton.jit
def gradient_kernel(
    p,
    q,
    trainable,
    grad,
    N,
    R,
    M,
    NUM_EXPERTS,
    CHUNK,
    stride_qn,
    stride_qm,
    stride_gr,
    stride_gm,
    RANK: tl.constexpr,
    EXPERTS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_M: tl.constexpr,
    MASKED: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Sum the outer products of one tile of rank columns and features over one part of the tokens."""
    tiles = tl.cdiv(NUM_EXPERTS, EXPERTS)
    first = tl.program_id(0) % tiles * EXPERTS
    lanes = tl.arange(0, BLOCK_R)
    experts = first + lanes // RANK
    columns = first * RANK + lanes
    valid = (lanes < EXPERTS * RANK) & (columns < R)
    features = tl.program_id(0) // tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    known = features < M
    places = (
        tl.program_id(1).to(tl.int64) * R * M + columns[:, None] * stride_gr + features[None, :] * stride_gm
    )
    start = tl.program_id(1) * CHUNK
    stop = tl.minimum(start + CHUNK, N)
    total = tl.zeros((BLOCK_R, BLOCK_M), dtype=tl.float32)
    learns = valid
    if MASKED:
        learns = tl.load(trainable + experts, mask=valid, other=0) != 0
        if tl.max(learns.to(tl.int32), axis=0) == 0:
            stop = start
    for at in range(start, stop, BLOCK_N):
        rows = (at + tl.arange(0, BLOCK_N)).to(tl.int64)
        live = rows < stop
        inside = live[:, None] & valid[None, :]
        right = load_tile(
            q + rows[:, None] * stride_qn + features[None, :] * stride_qm,
            live[:, None] & known[None, :],
            UPCAST,
        )
        left = load_tile(p + rows[:, None] * R + columns[None, :], inside, UPCAST)
        total = multiply(tl.trans(left), right, total)
    if MASKED:
        total = tl.where(learns[:, None], total, 0.0)
    tl.store(grad + places, total, mask=valid[:, None] & known[None, :])


@triton.jit
def sum_kernel(planes, out, SIZE, SPLITS, BLOCK: tl.constexpr):
    """Add the planes in order."""
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = places < SIZE
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for _ in range(SPLITS):
        total += tl.load(planes + places, mask=inside, other=0.0)
        planes += SIZE
    tl.store(out + places, total, mask=inside)


def weight_gradient(
    p: Tensor, q: Tensor, rank: int, by_rank: bool, out: Tensor, trainable: Tensor | None, upcast: bool
) -> None:
    """Write `p^T q` as [R, M], or as its transpose [M, R].

    Args:
        p: `dh` or `z`, [N, R], contiguous.
        q: `x` or `dy`, [N, M]; any strides.
        rank: Rank `r` of each expert.
        by_rank: Whether the result is [R, M] (the layout of `A`) or [M, R] (that of `B`).
        out: Result, contiguous.
        trainable: Which experts get a gradient, bool [E]; None means all.
        upcast: Whether the interpreter runs and must not see bf16.
    """
    (tokens, columns), width = p.shape, q.shape[1]
    experts = columns // rank
    tiles = gradient_tiles(tokens, width, experts, rank, q.element_size(), multiprocessors(q.device))
    chunk = triton.cdiv(triton.cdiv(tokens, tiles.splits), tiles.rows) * tiles.rows
    splits = triton.cdiv(tokens, chunk)
    target = out
    if splits > 1:
        target = torch.empty(splits, out.numel(), dtype=torch.float32, device=q.device)
    experts_per_tile = tiles.ranks // rank
    programs = triton.cdiv(width, tiles.features) * triton.cdiv(experts, experts_per_tile)
    gradient_kernel[(programs, splits)](
        p, q, p if trainable is None else trainable, target, tokens, columns, width, experts, chunk,
        q.stride(0), q.stride(1), *((width, 1) if by_rank else (1, columns)), RANK=rank,
        EXPERTS=experts_per_tile, BLOCK_N=tiles.rows, BLOCK_R=tiles.ranks, BLOCK_M=tiles.features,
        MASKED=trainable is not None, UPCAST=upcast, num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    if splits > 1:
        sum_kernel[(triton.cdiv(out.numel(), 1024),)](target, out, out.numel(), splits, BLOCK=1024)
