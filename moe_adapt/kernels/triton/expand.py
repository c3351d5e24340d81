"""Out of rank space: `y = base + z B^T` in the forward pass, `dx = dh A` in the backward pass.

The tile of `base` starts the fp32 accumulator: the sum is rounded once, `base` read once, `y` written once.
"""

import triton
import triton.language as tl
from torch import Tensor

from moe_adapt.kernels.triton.blocks import load_tile, multiply
from moe_adapt.kernels.triton.tiles import expand_tiles

__all__ = ["expand"]


@triton.jit
def expand_kernel(
    z,
    w,
    base,
    y,
    N,
    R,
    M,
    stride_wr,
    stride_wm,
    stride_bn,
    stride_bm,
    stride_yn,
    HAS_BASE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_M: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Compute one tile of the result."""
    tiles = tl.cdiv(M, BLOCK_M)
    rows = (tl.program_id(0) // tiles).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    features = tl.program_id(0) % tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    live = rows < N
    known = features < M
    if HAS_BASE:
        total = tl.load(
            base + rows[:, None] * stride_bn + features[None, :] * stride_bm,
            mask=live[:, None] & known[None, :],
            other=0.0,
        ).to(tl.float32)
    else:
        total = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
    for at in range(0, R, BLOCK_R):
        columns = at + tl.arange(0, BLOCK_R)
        inside = columns < R
        left = load_tile(z + rows[:, None] * R + columns[None, :], live[:, None] & inside[None, :], UPCAST)
        right = load_tile(
            w + columns[:, None] * stride_wr + features[None, :] * stride_wm,
            inside[:, None] & known[None, :],
            UPCAST,
        )
        total = multiply(left, right, total)
    tl.store(y + rows[:, None] * stride_yn + features[None, :], total, mask=live[:, None] & known[None, :])


def expand(
    z: Tensor, factor: Tensor, by_rank: bool, base: Tensor | None, out: Tensor, upcast: bool
) -> Tensor:
    """Write `base + z factor` into `out` and return it.

    Args:
        z: Scaled hidden vectors, [N, R], contiguous.
        factor: `B` [o, E, r] or `A` [E, r, d], contiguous.
        by_rank: Whether the factor is laid out as `A`.
        base: What to add, [N, M]; any strides. None adds nothing.
        out: Result, [N, M], rows contiguous; may be `base` itself.
        upcast: Whether the interpreter runs and must not see bf16.
    """
    (tokens, columns), width = z.shape, out.shape[1]
    tiles = expand_tiles(tokens, width, columns, z.element_size())
    summand = out if base is None else base
    grid = (triton.cdiv(tokens, tiles.rows) * triton.cdiv(width, tiles.features),)
    expand_kernel[grid](
        z, factor, summand, out, tokens, columns, width, *((width, 1) if by_rank else (1, columns)),
        summand.stride(0), summand.stride(1), out.stride(0), HAS_BASE=base is not None, BLOCK_N=tiles.rows,
        BLOCK_R=tiles.ranks, BLOCK_M=tiles.features, UPCAST=upcast, num_warps=tiles.warps,
        num_stages=tiles.stages,
    )  # fmt: skip
    return out
