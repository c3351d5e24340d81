"""Many experts, few per token: tokens are sorted by expert and each expert multiplies its own.

`shrink` multiplies every token with every expert. That costs nothing while `R = E r` is small, because
reading the tokens takes longer; from a few hundred columns on it does not. Here slot `k` of all tokens is one
pass: its tokens are sorted by expert (`Groups`) and cut into blocks of one expert each. A pass touches each
token once, so results are read, added to and written without atomics, slot after slot; between slots they are
fp32, so that they are rounded once. Hidden vectors are [N, K, r]. The grid is an upper bound of the number of
blocks; those beyond the last return at once. Nothing is read back to the host, and shapes do not depend on
values.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from moe_adapt.kernels.triton.blocks import load_tile, multiply
from moe_adapt.kernels.triton.tiles import grouped_tiles

__all__ = ["Groups", "group_expand", "group_gradient", "group_shrink"]


@dataclass(frozen=True)
class Groups:
    """Tokens sorted by expert, slot by slot; empty slots come last, as group `E`.

    Attributes:
        tokens: Token at each sorted place, int32 [K, N].
        starts: Where each group starts, int32 [K, E + 2].
        first: First block of each group, int32 [K, E + 2].
        owner: Group of each block, int32 [K, blocks]; `E + 1` beyond the last.
        rows: Tokens per block.
    """

    tokens: Tensor
    starts: Tensor
    first: Tensor
    owner: Tensor
    rows: int

    @classmethod
    def of(cls, index: Tensor, experts: int, rows: int) -> "Groups":
        """Sort the slots of an index [N, K]; experts that do not exist count as none."""
        tokens, slots = index.shape
        keys = torch.where((index >= 0) & (index < experts), index, experts).t().contiguous()
        keys, order = keys.sort(dim=1, stable=True)
        bounds = torch.arange(experts + 2, device=index.device, dtype=keys.dtype)
        starts = torch.searchsorted(keys, bounds.expand(slots, -1).contiguous())
        counts = (starts.diff(dim=1) + rows - 1) // rows
        first = torch.nn.functional.pad(counts.cumsum(dim=1), (1, 0))
        blocks = torch.arange(
            triton.cdiv(tokens, rows) + min(experts + 1, tokens), device=index.device, dtype=first.dtype
        )
        owner = torch.searchsorted(
            first[:, 1:].contiguous(), blocks.expand(slots, -1).contiguous(), right=True
        )
        tables = [table.to(torch.int32) for table in (order, starts, first, owner)]
        return cls(tables[0], tables[1], tables[2], tables[3], rows)


@triton.jit
def _block(tokens, starts, first, owner, slot, block, N, BLOCKS, NUM_EXPERTS, BLOCK_N: tl.constexpr):
    """Return the expert of a block, its tokens, and which of them there are."""
    expert = tl.load(owner + slot * BLOCKS + block)
    table = slot * (NUM_EXPERTS + 2) + tl.minimum(expert, NUM_EXPERTS)
    places = tl.load(starts + table) + (block - tl.load(first + table)) * BLOCK_N + tl.arange(0, BLOCK_N)
    live = (places < tl.load(starts + table + 1)) & (expert <= NUM_EXPERTS)
    rows = tl.load(tokens + slot * N + places, mask=live, other=0).to(tl.int64)
    return expert, rows, live


@triton.jit
def group_shrink_kernel(
    x,
    w,
    tokens,
    starts,
    first,
    owner,
    hidden,
    scaled,
    again,
    dweight,
    weight,
    N,
    L,
    SLOTS,
    BLOCKS,
    NUM_EXPERTS,
    scale,
    stride_xn,
    stride_xl,
    stride_we,
    stride_wr,
    stride_wl,
    RANK: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BACKWARD: tl.constexpr,
    SAVE: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Multiply the tokens of one block with the factor of their expert; finish as `shrink` does."""
    block, slot = tl.program_id(0), tl.program_id(1)
    expert, rows, live = _block(tokens, starts, first, owner, slot, block, N, BLOCKS, NUM_EXPERTS, BLOCK_N)
    if expert >= NUM_EXPERTS:
        return
    lanes = tl.arange(0, BLOCK_R)
    valid = lanes < RANK
    w += expert * stride_we
    total = tl.zeros((BLOCK_N, BLOCK_R), dtype=tl.float32)
    for at in range(0, L, BLOCK_L):
        inner = at + tl.arange(0, BLOCK_L)
        inside = inner < L
        left = load_tile(
            x + rows[:, None] * stride_xn + inner[None, :] * stride_xl,
            live[:, None] & inside[None, :],
            UPCAST,
        )
        right = load_tile(
            w + inner[:, None] * stride_wl + lanes[None, :] * stride_wr,
            inside[:, None] & valid[None, :],
            UPCAST,
        )
        total = multiply(left, right, total)
    pairs = rows * SLOTS + slot
    places = pairs[:, None] * RANK + lanes[None, :]
    present = live[:, None] & valid[None, :]
    gate = tl.load(weight + pairs, mask=live, other=0.0).to(tl.float32)[:, None] * scale
    tl.store(scaled + places, total * gate, mask=present)
    if BACKWARD:
        h = tl.load(hidden + places, mask=present, other=0.0)
        tl.store(again + places, h * gate, mask=present)
        if SAVE:
            tl.store(dweight + pairs, tl.sum(h * total, axis=1) * scale, mask=live)
    elif SAVE:
        tl.store(hidden + places, total, mask=present)


@triton.jit
def group_expand_kernel(
    z,
    w,
    tokens,
    starts,
    first,
    owner,
    base,
    y,
    slot,
    N,
    M,
    SLOTS,
    BLOCKS,
    NUM_EXPERTS,
    LIMIT,
    stride_we,
    stride_wr,
    stride_wm,
    stride_bn,
    stride_bm,
    stride_yn,
    HAS_BASE: tl.constexpr,
    RANK: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_M: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Add what the tokens of one block get from their expert; groups from `LIMIT` on are left."""
    tiles = tl.cdiv(M, BLOCK_M)
    block = tl.program_id(0) // tiles
    expert, rows, live = _block(tokens, starts, first, owner, slot, block, N, BLOCKS, NUM_EXPERTS, BLOCK_N)
    if expert >= LIMIT:
        return
    features = tl.program_id(0) % tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    present = live[:, None] & (features < M)[None, :]
    if HAS_BASE:
        total = tl.load(
            base + rows[:, None] * stride_bn + features[None, :] * stride_bm, mask=present, other=0.0
        )
        total = total.to(tl.float32)
    else:
        total = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
    lanes = tl.arange(0, BLOCK_R)
    valid = (lanes < RANK) & (expert < NUM_EXPERTS)
    left = load_tile(
        z + (rows * SLOTS + slot)[:, None] * RANK + lanes[None, :], live[:, None] & valid[None, :], UPCAST
    )
    right = load_tile(
        w + expert * stride_we + lanes[:, None] * stride_wr + features[None, :] * stride_wm,
        valid[:, None] & (features < M)[None, :],
        UPCAST,
    )
    total = multiply(left, right, total)
    tl.store(y + rows[:, None] * stride_yn + features[None, :], total, mask=present)


@triton.jit
def group_gradient_kernel(
    p,
    q,
    tokens,
    starts,
    trainable,
    grad,
    N,
    M,
    SLOTS,
    NUM_EXPERTS,
    stride_qn,
    stride_qm,
    stride_ge,
    stride_gr,
    stride_gm,
    RANK: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_M: tl.constexpr,
    MASKED: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Sum the outer products of the tokens of one expert, slot by slot; one without tokens gets zeros."""
    expert = tl.program_id(0)
    features = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    known = features < M
    lanes = tl.arange(0, BLOCK_R)
    valid = lanes < RANK
    total = tl.zeros((BLOCK_R, BLOCK_M), dtype=tl.float32)
    slots = SLOTS
    if MASKED:
        slots = tl.where(tl.load(trainable + expert) != 0, SLOTS, 0)
    for slot in range(0, slots):
        table = slot * (NUM_EXPERTS + 2) + expert
        stop = tl.load(starts + table + 1)
        for at in range(tl.load(starts + table), stop, BLOCK_N):
            places = at + tl.arange(0, BLOCK_N)
            live = places < stop
            rows = tl.load(tokens + slot * N + places, mask=live, other=0).to(tl.int64)
            left = load_tile(
                p + (rows * SLOTS + slot)[:, None] * RANK + lanes[None, :],
                live[:, None] & valid[None, :],
                UPCAST,
            )
            right = load_tile(
                q + rows[:, None] * stride_qn + features[None, :] * stride_qm,
                live[:, None] & known[None, :],
                UPCAST,
            )
            total = multiply(tl.trans(left), right, total)
    places = expert.to(tl.int64) * stride_ge + lanes[:, None] * stride_gr + features[None, :] * stride_gm
    tl.store(grad + places, total, mask=valid[:, None] & known[None, :])


def group_shrink(
    x: Tensor,
    factor: Tensor,
    by_rank: bool,
    groups: Groups,
    weight: Tensor,
    scale: float,
    hidden: Tensor,
    upcast: bool,
    backward: bool = False,
    dweight: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return `z = s w h` [N, K, r] in the dtype of `x`, and in the backward pass `dh = s w u`, too.

    Rows of empty slots are not written; `group_expand` and `group_gradient` do not read them.

    Args:
        x: `x` [N, d] in the forward pass, `dy` [N, o] in the backward pass; any strides.
        factor: `A` [E, r, d] or `B` [o, E, r], contiguous.
        by_rank: Whether the factor is laid out as `A`.
        groups: The sorted tokens.
        weight: Weights [N, K], contiguous.
        scale: The LoRA scale `s`.
        hidden: Forward: where to save `h`, fp32 [N, K, r], or empty. Backward: the saved `h`.
        upcast: Whether the interpreter runs and must not see bf16.
        backward: Whether this is the backward pass.
        dweight: Backward: zeros in which to write the gradient of the weights; None leaves it out.
    """
    (tokens, length), slots = x.shape, weight.shape[1]
    experts, rank, strides = _layout(factor, by_rank)
    tiles = grouped_tiles(tokens, length, experts, rank, x.element_size())
    z = torch.empty(tokens, slots, rank, dtype=x.dtype, device=x.device)
    scaled = torch.empty_like(z) if backward else z
    blocks = groups.owner.shape[1]
    group_shrink_kernel[(blocks, slots)](
        x, factor, *_tables(groups), hidden, scaled, z, z if dweight is None else dweight, weight, tokens,
        length, slots, blocks, experts, scale, x.stride(0), x.stride(1), *strides, RANK=rank,
        BLOCK_N=groups.rows, BLOCK_R=tiles.ranks, BLOCK_L=tiles.features, BACKWARD=backward,
        SAVE=dweight is not None if backward else hidden.numel() > 0, UPCAST=upcast, num_warps=tiles.warps,
        num_stages=tiles.stages,
    )  # fmt: skip
    return z, scaled


def group_expand(
    z: Tensor, factor: Tensor, by_rank: bool, groups: Groups, base: Tensor | None, out: Tensor, upcast: bool
) -> None:
    """Write `base` plus what each token gets from its experts into `out`, slot after slot.

    Args:
        z: Scaled hidden vectors, [N, K, r], contiguous.
        factor: `B` [o, E, r] or `A` [E, r, d], contiguous.
        by_rank: Whether the factor is laid out as `A`.
        groups: The sorted tokens.
        base: What to add, [N, M]; any strides. None adds nothing.
        out: Result, [N, M], rows contiguous.
        upcast: Whether the interpreter runs and must not see bf16.
    """
    (tokens, slots, _), width = z.shape, out.shape[1]
    experts, rank, strides = _layout(factor, by_rank)
    tiles = grouped_tiles(tokens, width, experts, rank, z.element_size())
    blocks = groups.owner.shape[1]
    total = out
    if slots > 1 and out.dtype != torch.float32:
        total = torch.empty(out.shape, dtype=torch.float32, device=out.device)
    for slot in range(slots):
        summand, target = base if slot == 0 else total, out if slot == slots - 1 else total
        source = target if summand is None else summand
        limit = experts + (source is not target or slot == 0)  # tokens without an expert are copied, too
        group_expand_kernel[(blocks * triton.cdiv(width, tiles.features),)](
            z, factor, *_tables(groups), source, target, slot, tokens, width, slots, blocks, experts, limit,
            *strides, source.stride(0), source.stride(1), target.stride(0), HAS_BASE=summand is not None,
            RANK=rank, BLOCK_N=groups.rows, BLOCK_R=tiles.ranks, BLOCK_M=tiles.features, UPCAST=upcast,
            num_warps=tiles.warps, num_stages=2,
        )  # fmt: skip


def group_gradient(
    p: Tensor, q: Tensor, by_rank: bool, groups: Groups, out: Tensor, trainable: Tensor | None, upcast: bool
) -> None:
    """Write the weight gradient of every expert.

    Args:
        p: `dh` or `z`, [N, K, r], contiguous.
        q: `x` or `dy`, [N, M]; any strides.
        by_rank: Whether the result is laid out as `A`.
        groups: The sorted tokens.
        out: Result, [E, r, d] or [o, E, r], contiguous.
        trainable: Which experts get a gradient, bool [E]; None means all.
        upcast: Whether the interpreter runs and must not see bf16.
    """
    (tokens, slots, _), width = p.shape, q.shape[1]
    experts, rank, strides = _layout(out, by_rank)
    tiles = grouped_tiles(tokens, width, experts, rank, q.element_size())
    group_gradient_kernel[(experts, triton.cdiv(width, tiles.features))](
        p, q, groups.tokens, groups.starts, groups.tokens if trainable is None else trainable, out, tokens,
        width, slots, experts, q.stride(0), q.stride(1), *strides, RANK=rank, BLOCK_N=groups.rows,
        BLOCK_R=tiles.ranks, BLOCK_M=tiles.features, MASKED=trainable is not None, UPCAST=upcast,
        num_warps=8 if tiles.ranks > 64 else 4, num_stages=2,
    )  # fmt: skip


def _layout(factor: Tensor, by_rank: bool) -> tuple[int, int, tuple[int, int, int]]:
    """Return E, r and the strides of expert, rank and feature."""
    if by_rank:
        experts, rank, width = factor.shape
        return experts, rank, (rank * width, width, 1)
    _, experts, rank = factor.shape
    return experts, rank, (rank, 1, experts * rank)


def _tables(groups: Groups) -> tuple[Tensor, ...]:
    return groups.tokens, groups.starts, groups.first, groups.owner
