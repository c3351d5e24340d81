"""Tile sizes of the Triton kernels: a pure function of shapes and dtype, never of values or timings.

A program of a kernel works on one tile. Columns of the rank dimension (`R = E r`) are cut into tiles of whole
experts, `experts = ranks // r` each, so that a program sees every hidden value of an expert and can form its
gate gradient; the columns that are left over are masked. `ranks` is a power of two and at least 16, which
is what the matrix units take; a rank of 3 or 24 costs masked columns, not another code path.

All tiles stay under `SHARED` bytes of shared memory, which every GPU from compute capability 8.0 on has. Full
precision does not run on the matrix units; its tiles are smaller, so that registers suffice. The numbers are
starting points from roofline arithmetic and have not been tuned on a GPU; `forced` is the way in for a tuner
and for tests.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache

import torch

__all__ = [
    "DECODE_TOKENS",
    "MAX_RANK",
    "MIN_TILE",
    "SHARED",
    "Tiles",
    "decode_tiles",
    "decodes_at_once",
    "expand_tiles",
    "forced",
    "gradient_tiles",
    "grouped_tiles",
    "multiprocessors",
    "once_columns",
    "shrink_tiles",
    "uses_groups",
]

#: Up to this many tokens in the sparse form, without a gradient, go pair by pair.
DECODE_TOKENS = 32
#: Up to this many of them may take one launch instead of two.
ONCE_TOKENS = 4
#: The most bytes of `A` that each program of that launch may read: 1.2 microseconds at 64 bytes a clock. A
#: launch within a graph is said to take 2 to 3. Arithmetic, not measured.
ONCE_BYTES = 128 * 1024

#: Largest rank of one expert: its columns must fit one tile.
MAX_RANK = 256
#: From this many columns on tokens are sorted by expert, if each uses few of them.
GROUPED_COLUMNS = 512
#: Bytes of shared memory for the pipelined operands of one program.
SHARED = 96 * 1024
#: Fewest rows, columns and summands of a matrix product on a GPU. The interpreter would take less.
MIN_TILE = 16

_forced: dict[str, int] = {}


@dataclass(frozen=True)
class Tiles:
    """Tile sizes and launch options of one kernel.

    Attributes:
        rows: Tokens.
        ranks: Columns of the rank dimension.
        features: Columns of the model dimension.
        splits: Parts of the sum that different programs compute and a second kernel adds, in fixed order.
        warps: Warps per program.
        stages: Depth of the load pipeline.
    """

    rows: int
    ranks: int
    features: int
    splits: int
    warps: int
    stages: int

    def __post_init__(self) -> None:
        for name in ("rows", "ranks", "features"):
            size = getattr(self, name)
            if size < MIN_TILE or size & (size - 1):
                raise ValueError(
                    f"a tile's {name} must be a power of two of at least {MIN_TILE}, got {size}."
                )


@contextmanager
def forced(**sizes: int) -> Iterator[None]:
    """Override fields of every `Tiles` that is chosen inside the block, for tests and tuning."""
    before = dict(_forced)
    _forced.update(sizes)
    try:
        yield
    finally:
        _forced.clear()
        _forced.update(before)


def power_of_two(value: int, low: int = MIN_TILE, high: int = MAX_RANK) -> int:
    """Return the next power of two, clamped.

    >>> power_of_two(24), power_of_two(3), power_of_two(1000)
    (32, 16, 256)
    """
    return min(max(1 << max(value - 1, 0).bit_length(), low), high)


@lru_cache
def multiprocessors(device: torch.device) -> int:
    """Return how many programs run side by side; the interpreter counts as an H100."""
    if device.type != "cuda":
        return 132
    return torch.cuda.get_device_properties(device).multi_processor_count


def stages(bytes_per_stage: int) -> int:
    """Return how deep the load pipeline can be, 2 to 4."""
    return max(2, min(4, SHARED // bytes_per_stage))


def shrink_tiles(tokens: int, length: int, experts: int, rank: int, itemsize: int, sms: int) -> Tiles:
    """Return the tiles of the product into rank space, [N, length] x [length, R].

    Args:
        tokens: Number of tokens `N`.
        length: Length of the sum, `d` or `o`.
        experts: Number of experts `E`.
        rank: Rank `r` of each.
        itemsize: Bytes of one number.
        sms: Multiprocessors of the device.
    """
    ranks = power_of_two(max(experts * rank if experts * rank <= MAX_RANK else MAX_RANK, rank))
    high = 128 if tokens >= 8192 and ranks <= 128 else 64
    rows = power_of_two(tokens, high=high if itemsize < 4 else 32)
    features = power_of_two(length, high=32 if itemsize == 4 else 64 if ranks > 128 else 128)
    programs = math.ceil(tokens / rows) * math.ceil(experts / (ranks // rank))
    splits = min(2 * sms // max(programs, 1), 8, length // (4 * features))
    return _chosen(
        Tiles(
            rows=rows,
            ranks=ranks,
            features=features,
            splits=max(splits, 1),
            warps=8 if ranks >= 128 else 4,
            stages=stages((rows + ranks) * features * itemsize),
        )
    )


def expand_tiles(tokens: int, width: int, columns: int, itemsize: int) -> Tiles:
    """Return the tiles of the product out of rank space, [N, R] x [R, width].

    Args:
        tokens: Number of tokens `N`.
        width: Columns of the result, `o` or `d`.
        columns: Columns of the rank dimension `R`.
        itemsize: Bytes of one number.
    """
    rows = power_of_two(tokens, high=128 if tokens >= 8192 and itemsize < 4 else 64)
    features = power_of_two(width, high=128 if itemsize < 4 else 64)
    ranks = power_of_two(columns, high=32 if itemsize == 4 else 64)
    warps = 8 if rows * features > 64 * 128 or itemsize == 4 else 4
    return _chosen(
        Tiles(
            rows=rows,
            ranks=ranks,
            features=features,
            splits=1,
            warps=warps,
            stages=min(2, stages((rows + features) * ranks * itemsize)),
        )
    )


def gradient_tiles(tokens: int, width: int, experts: int, rank: int, itemsize: int, sms: int) -> Tiles:
    """Return the tiles of a weight gradient, [R, N] x [N, width]; its split is over tokens.

    Args:
        tokens: Number of tokens `N`.
        width: `d` or `o`.
        experts: Number of experts `E`.
        rank: Rank `r` of each.
        itemsize: Bytes of one number.
        sms: Multiprocessors of the device.
    """
    ranks = power_of_two(max(min(experts * rank, 128), rank))
    features = power_of_two(width, high=128 if ranks <= 128 and itemsize < 4 else 64)
    rows = power_of_two(tokens, high=16 if itemsize == 4 else 64)
    programs = math.ceil(width / features) * math.ceil(experts / (ranks // rank))
    splits = min(math.ceil(sms / programs), 8, tokens // (4 * rows))
    return _chosen(
        Tiles(
            rows=rows,
            ranks=ranks,
            features=features,
            splits=max(splits, 1),
            warps=8 if ranks * features > 64 * 128 else 4,
            stages=stages((ranks + features) * rows * itemsize),
        )
    )


def decode_tiles(pairs: int, length: int, rank: int, sms: int) -> Tiles:
    """Return the tiles of the pairwise path; `rows` is not used.

    Args:
        pairs: Pairs of token and expert, `N K`.
        length: Length of the sum, `d`.
        rank: Rank `r` of each expert.
        sms: Multiprocessors of the device.
    """
    ranks = power_of_two(rank)
    features = power_of_two(length, low=64, high=max(64, 4096 // ranks))
    splits = min(2 * sms // max(pairs, 1), 16, length // features)
    return _chosen(Tiles(MIN_TILE, ranks, features, max(splits, 1), warps=4, stages=2))


def decodes_at_once(tokens: int, slots: int, rank: int, length: int, itemsize: int) -> bool:
    """Return whether the pairwise path takes one launch, whose programs all compute hidden vectors anew.

    Args:
        tokens: Number of tokens `N`.
        slots: Experts per token `K`.
        rank: Rank `r` of each expert.
        length: Length of the sum, `d`.
        itemsize: Bytes of one number.
    """
    return tokens <= ONCE_TOKENS and slots * rank * length * itemsize <= ONCE_BYTES


def once_columns(tokens: int, width: int, rank: int, sms: int) -> int:
    """Return how many columns of the result a program of the single launch writes: one program per processor.

    Args:
        tokens: Number of tokens `N`.
        width: Columns of the result, `o`.
        rank: Rank `r` of each expert.
        sms: Multiprocessors of the device.
    """
    return power_of_two(math.ceil(width * tokens / sms), high=max(MIN_TILE, 4096 // power_of_two(rank)))


def uses_groups(slots: int, experts: int, rank: int) -> bool:
    """Return whether tokens are sorted by expert: many columns, of which a token uses few.

    Does not look at the number of tokens, so that a compiled graph serves any.
    """
    return experts * rank > GROUPED_COLUMNS and 0 < 4 * slots <= experts


def grouped_tiles(tokens: int, width: int, experts: int, rank: int, itemsize: int) -> Tiles:
    """Return the tiles of the sorted path; `rows` follows the mean number of tokens per expert and slot.

    Args:
        tokens: Number of tokens `N`.
        width: `d` or `o`.
        experts: Number of experts `E`.
        rank: Rank `r` of each.
        itemsize: Bytes of one number.
    """
    rows = power_of_two(tokens // experts, high=64 if itemsize < 4 else 32)
    ranks = power_of_two(rank)
    features = power_of_two(width, high=32 if itemsize == 4 else 64 if ranks > 64 else 128)
    depth = stages((rows + ranks) * features * itemsize)
    return _chosen(Tiles(rows, ranks, features, splits=1, warps=4, stages=depth))


def _chosen(tiles: Tiles) -> Tiles:
    return replace(tiles, **_forced) if _forced else tiles
