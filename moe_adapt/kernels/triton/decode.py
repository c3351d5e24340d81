"""A few tokens, a few experts each: one program per pair of token and expert, no matrix units.

With up to `DECODE_TOKENS` tokens `shrink` would fill tiles of 16 rows with mostly nothing and multiply every
expert; what counts here is the number of launches and the bytes of the experts that are used. Two launches:
the first sums `A_e x` of a pair over one part of the features, the second adds the parts in order and writes
each number of the result once. Where `decodes_at_once` says so, for up to four tokens, there is one launch:
every program computes the hidden vectors of its token itself, and so reads its experts' `A` again. Inference
only. Sums are fp32 throughout.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from moe_adapt.kernels.triton.tiles import decode_tiles, decodes_at_once, multiprocessors, once_columns

__all__ = ["decode"]


@triton.jit
def hidden_part(
    x, a, expert, start, stop, L, stride_xl, RANK: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_L: tl.constexpr
):
    """Return the sum of `A_e x` over the features from `start` to `stop` of one token, fp32 [BLOCK_R]."""
    lanes = tl.arange(0, BLOCK_R)
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
    return total


@triton.jit
def base_part(base, features, known, stride_bm, HAS_BASE: tl.constexpr, BLOCK_M: tl.constexpr):
    """Return one token's base output, fp32 [BLOCK_M]; zero without one."""
    if HAS_BASE:
        total = tl.load(base + features * stride_bm, mask=known, other=0.0).to(tl.float32)
    else:
        total = tl.zeros((BLOCK_M,), dtype=tl.float32)
    return total


@triton.jit
def expert_output(b, hidden, expert, features, known, NUM_EXPERTS, RANK: tl.constexpr, BLOCK_R: tl.constexpr):
    """Return `B_e` times a hidden vector for some columns of the result, fp32."""
    lanes = tl.arange(0, BLOCK_R)
    up = tl.load(
        b + features[:, None] * NUM_EXPERTS * RANK + expert * RANK + lanes[None, :],
        mask=known[:, None] & (lanes < RANK)[None, :],
        other=0.0,
    ).to(tl.float32)
    return tl.sum(up * hidden[None, :], axis=1)


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
    total = hidden_part(x, a, expert, start, stop, L, stride_xl, RANK, BLOCK_R, BLOCK_L)
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
    total = base_part(base + row * stride_bn, features, known, stride_bm, HAS_BASE, BLOCK_M)
    for slot in range(SLOTS):
        pair = token * SLOTS + slot
        expert = tl.load(index + pair)
        if (expert >= 0) & (expert < NUM_EXPERTS):
            hidden = tl.zeros((BLOCK_R,), dtype=tl.float32)
            for split in range(SPLITS):
                places = (split * tl.num_programs(0) * SLOTS + pair) * RANK + lanes
                hidden += tl.load(planes + places, mask=lanes < RANK, other=0.0)
            hidden *= tl.load(weight + pair).to(tl.float32) * scale
            total += expert_output(b, hidden, expert, features, known, NUM_EXPERTS, RANK, BLOCK_R)
    tl.store(y + row * stride_yn + features, total, mask=known)


@triton.jit
def decode_once_kernel(
    x,
    a,
    b,
    base,
    y,
    weight,
    index,
    L,
    M,
    SLOTS,
    NUM_EXPERTS,
    scale,
    stride_xn,
    stride_xl,
    stride_bn,
    stride_bm,
    stride_yn,
    HAS_BASE: tl.constexpr,
    RANK: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Compute one part of the result of one token from its input."""
    token = tl.program_id(0)
    row = token.to(tl.int64)
    features = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    known = features < M
    total = base_part(base + row * stride_bn, features, known, stride_bm, HAS_BASE, BLOCK_M)
    for slot in range(SLOTS):
        pair = token * SLOTS + slot
        expert = tl.load(index + pair)
        if (expert >= 0) & (expert < NUM_EXPERTS):
            hidden = hidden_part(x + row * stride_xn, a, expert, 0, L, L, stride_xl, RANK, BLOCK_R, BLOCK_L)
            hidden *= tl.load(weight + pair).to(tl.float32) * scale
            total += expert_output(b, hidden, expert, features, known, NUM_EXPERTS, RANK, BLOCK_R)
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
    sms = multiprocessors(x.device)
    tiles = decode_tiles(pairs, length, rank, sms)
    summand = out if base is None else base
    if decodes_at_once(tokens, slots, rank, length, a.element_size()):
        columns = once_columns(tokens, width, rank, sms)
        decode_once_kernel[(tokens, triton.cdiv(width, columns))](
            x, a, b, summand, out, weight, index, length, width, slots, experts, scale, x.stride(0),
            x.stride(1), summand.stride(0), summand.stride(1), out.stride(0), HAS_BASE=base is not None,
            RANK=rank, BLOCK_R=tiles.ranks, BLOCK_L=tiles.features, BLOCK_M=columns, num_warps=tiles.warps,
        )  # fmt: skip
        return
    chunk = triton.cdiv(triton.cdiv(length, tiles.splits), tiles.features) * tiles.features
    splits = triton.cdiv(length, chunk)
    planes = torch.empty(splits, pairs, rank, dtype=torch.float32, device=x.device)
    decode_shrink_kernel[(pairs, splits)](
        x, a, index, planes, length, slots, experts, chunk, x.stride(0), x.stride(1), RANK=rank,
        BLOCK_R=tiles.ranks, BLOCK_L=tiles.features, num_warps=tiles.warps,
    )  # fmt: skip
    decode_expand_kernel[(tokens, triton.cdiv(width, tiles.features))](
        planes, b, summand, out, weight, index, width, slots, experts, splits, scale, summand.stride(0),
        summand.stride(1), out.stride(0), HAS_BASE=base is not None, RANK=rank, BLOCK_R=tiles.ranks,
        BLOCK_M=tiles.features, num_warps=tiles.warps,
    )  # fmt: skip
