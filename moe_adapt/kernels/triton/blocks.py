"""Pieces that the Triton kernels share: loads, gates in registers, what happens to a finished hidden tile.

Arithmetic is fp32 and products accumulate in fp32. `UPCAST` turns every loaded number into fp32 at once: the
interpreter computes garbage on bf16 without saying so, the GPU does not need it.
"""

import triton
import triton.language as tl

__all__ = ["finish_backward", "finish_forward", "gate_tile", "load_tile", "multiply"]


@triton.jit
def load_tile(pointers, mask, UPCAST: tl.constexpr):
    """Load numbers; zero where masked."""
    values = tl.load(pointers, mask=mask, other=0.0)
    if UPCAST:
        values = values.to(tl.float32)
    return values


@triton.jit
def multiply(left, right, total):
    """Add a matrix product to an fp32 total; fp32 operands are multiplied as fp32, never as tf32."""
    return tl.dot(left, right, total, input_precision="ieee")


@triton.jit
def gate_tile(
    gates,
    index,
    rows,
    live,
    experts,
    SLOTS,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
    SPARSE: tl.constexpr,
):
    """Return the gate of each row for the expert of each column, fp32.

    Dense gates are [N, E] (`SLOTS` = E). In the sparse form `gates` are the weights [N, K] of the experts
    `index` [N, K] (`SLOTS` = K); an expert that is named twice gets the sum, an unknown one is no one's.
    """
    if SPARSE:
        tile = tl.zeros((BLOCK_N, BLOCK_R), dtype=tl.float32)
        for slot in range(SLOTS):
            chosen = tl.load(index + rows * SLOTS + slot, mask=live, other=-1)
            weight = tl.load(gates + rows * SLOTS + slot, mask=live, other=0.0).to(tl.float32)
            tile += tl.where(experts[None, :] == chosen[:, None], weight[:, None], 0.0)
    else:
        inside = live[:, None] & (experts < SLOTS)[None, :]
        tile = tl.load(gates + rows[:, None] * SLOTS + experts[None, :], mask=inside, other=0.0).to(
            tl.float32
        )
    return tile


@triton.jit
def finish_forward(
    h,
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
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
    SPARSE: tl.constexpr,
    SAVE: tl.constexpr,
):
    """Store `h` for the backward pass if asked, and `z = s g h` in the compute dtype."""
    places = rows[:, None] * R + columns[None, :]
    inside = live[:, None] & valid[None, :]
    if SAVE:
        tl.store(hidden + places, h, mask=inside)
    gate = gate_tile(gates, index, rows, live, experts, SLOTS, BLOCK_N, BLOCK_R, SPARSE)
    tl.store(scaled + places, h * gate * scale, mask=inside)


@triton.jit
def finish_backward(
    u,
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
    SPARSE: tl.constexpr,
    SAVE: tl.constexpr,
):
    """Store `dh = s g u`, `z = s g h` again and, if asked, `dg = s <h, u>` of this tile's experts.

    `u` is not gated, so the gradient of a gate that is zero is exact and no gate is divided by. A slot that
    names no expert belongs to the first tile, which writes its zero.
    """
    places = rows[:, None] * R + columns[None, :]
    inside = live[:, None] & valid[None, :]
    gate = gate_tile(gates, index, rows, live, experts, SLOTS, BLOCK_N, BLOCK_R, SPARSE) * scale
    h = tl.load(hidden + places, mask=inside, other=0.0)
    tl.store(scaled + places, u * gate, mask=inside)
    tl.store(again + places, h * gate, mask=inside)
    if SAVE:
        products = h * u * scale
        if SPARSE:
            for slot in range(SLOTS):
                chosen = tl.load(index + rows * SLOTS + slot, mask=live, other=-1)
                known = (chosen >= 0) & (chosen < NUM_EXPERTS)
                owner = tl.where(known, chosen // EXPERTS, 0)
                value = tl.sum(tl.where(experts[None, :] == chosen[:, None], products, 0.0), axis=1)
                tl.store(dgates + rows * SLOTS + slot, value, mask=live & (owner == first // EXPERTS))
        else:
            for expert in range(first, first + EXPERTS):
                value = tl.sum(tl.where(experts[None, :] == expert, products, 0.0), axis=1)
                tl.store(dgates + rows * SLOTS + expert, value, mask=live & (expert < NUM_EXPERTS))
