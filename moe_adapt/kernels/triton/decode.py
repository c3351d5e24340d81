"""A few tokens, a few experts each: one program per pair of token and expert, no matrix units.

With up to `DECODE_TOKENS` tokens `shrink` would fill tiles of 16 rows with mostly nothing and multiply every
expert; what counts here is the number of launches and the bytes of the experts that are used. Two launches:
the first sums `A_e x` of a pair over one part of the features, the second adds the parts in order and writes
each number of the result once. Inference only. Sums are fp32 throughout.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from moe_adapt.kernels.triton.tiles import decode_tiles, multiprocessors

__all__ = ["decode"]


@triton.jit
def decode_shrink_kernel(
    x,
    a,
    index,
    planes,
    L,
    SLOTS,
    NUM_EXPERTS,
    CHUNK,
    stride_xn,
    stride_xl,
    RANK: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    """Sum `A_e x` of one pair over one part of the features."""
    pair = tl.program_id(0)
    expert = tl.load(index + pair)
    if (expert < 0) | (expert >= NUM_EXPERTS):
        return
    x += (pair // SLOTS).to(tl.int64) * stride_xn
    lanes = tl.arange(0, BLOCK_R)
    start = tl.program_id(1) * CHUNK
    stop = tl.minimum(start + CHUNK, L)
    total = tl.zeros((BLOCK_R,), dtype=tl.float32)
    for at in range(start, stop, BLOCK_L):
        inner = at + tl.arange(0, BLOCK_L)
        inside = inner < stop
        vector = tl.load(x + inner * stride_xl, mask=inside, other=0.0).to(tl.float32)
        down = tl.load(
            a + (expert * RANK + lanes)[:, None] * L + inner[None, :],
            mask=(lanes < RANK)[:, None] & inside[None, :],
            other=0.0,
        ).to(tl.float32)
        total += tl.sum(down * vector[None, :], axis=1)
    places = (tl.program_id(1) * tl.num_programs(0) + pair) * RANK + lanes
    tl.store(planes + places, total, mask=lanes < RANK)


@triton.jit
def decode_expand_kernel(
    planes,
    b,
    base,
    y,
    weight,
    index,
    M,
    SLOTS,
    NUM_EXPERTS,
    SPLITS,
    scale,
    stride_bn,
    stride_bm,
    stride_yn,
    HAS_BASE: tl.constexpr,
    RANK: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Add the experts of one token to one part of its result."""
    token = tl.program_id(0)
    row = token.to(tl.int64)
    features = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    known = features < M
    lanes = tl.arange(0, BLOCK_R)
    if HAS_BASE:
        total = tl.load(base + row * stride_bn + features * stride_bm, mask=known, other=0.0).to(tl.float32)
    else:
        total = tl.zeros((BLOCK_M,), dtype=tl.float32)
    for slot in range(SLOTS):
        pair = token * SLOTS + slot
        expert = tl.load(index + pair)
        if (expert >= 0) & (expert < NUM_EXPERTS):
            hidden = tl.zeros((BLOCK_R,), dtype=tl.float32)
            for split in range(SPLITS):
                places = (split * tl.num_programs(0) * SLOTS + pair) * RANK + lanes
                hidden += tl.load(planes + places, mask=lanes < RANK, other=0.0)
            hidden *= tl.load(weight + pair).to(tl.float32) * scale
            up = tl.load(
                b + features[:, None] * NUM_EXPERTS * RANK + expert * RANK + lanes[None, :],
                mask=known[:, None] & (lanes < RANK)[None, :],
                other=0.0,
            ).to(tl.float32)
            total += tl.sum(up * hidden[None, :], axis=1)
    tl.store(y + row * stride_yn + features, total, mask=known)


def decode(
    x: Tensor,
    a: Tensor,
    b: Tensor,
    weight: Tensor,
    index: Tensor,
    scale: float,
    base: Tensor | None,
    out: Tensor,
) -> None:
    """Write `base + s sum_k w_k B_e A_e x` into `out`.

    Args:
        x: Tokens, [N, d]; any strides.
        a: Down-projections, [E, r, d], contiguous.
        b: Up-projections, [o, E, r], contiguous.
        weight: Weights [N, K], contiguous.
        index: Experts of the weights, int32 [N, K], contiguous.
        scale: The LoRA scale `s`.
        base: What to add, [N, o]; any strides. None adds nothing.
        out: Result, [N, o], rows contiguous; may be `base` itself.
    """
    (tokens, slots), (experts, rank, length) = index.shape, a.shape
    pairs, width = tokens * slots, b.shape[0]
    tiles = decode_tiles(pairs, length, rank, multiprocessors(x.device))
    chunk = triton.cdiv(triton.cdiv(length, tiles.splits), tiles.features) * tiles.features
    splits = triton.cdiv(length, chunk)
    planes = torch.empty(splits, pairs, rank, dtype=torch.float32, device=x.device)
    decode_shrink_kernel[(pairs, splits)](
        x, a, index, planes, length, slots, experts, chunk, x.stride(0), x.stride(1), RANK=rank,
        BLOCK_R=tiles.ranks, BLOCK_L=tiles.features, num_warps=tiles.warps,
    )  # fmt: skip
    summand = out if base is None else base
    decode_expand_kernel[(tokens, triton.cdiv(width, tiles.features))](
        planes, b, summand, out, weight, index, width, slots, experts, splits, scale, summand.stride(0),
        summand.stride(1), out.stride(0), HAS_BASE=base is not None, RANK=rank, BLOCK_R=tiles.ranks,
        BLOCK_M=tiles.features, num_warps=tiles.warps,
    )  # fmt: skip
