r"""Which device computes which tokens of which expert, if experts live on several devices: a plan alone.

Every expert has a native device, expert `e` of `E` on device `e W / E`. Where routing is uneven, devices wait
for the fullest. A plan takes the heaviest experts first and fills the native device up to the capacity

$$c = \lceil f\, \bar n \rceil, \qquad \bar n = \frac{1}{W} \sum_e n_e,$$

then hands the rest, in chunks of `chunk` tokens or more, to the emptiest device. The fullest device of a plan
has at most

$$\max(c,\; \bar n + \text{chunk}),$$

since whatever goes to the emptiest device meets a load of at most the mean. Loads whose fullest device is
below `skip` times the mean stay as they are.

LoRA experts are a few megabytes, so this library copies them to every device instead
(`docs/multi_gpu.md`); the plan is for those who build something larger on it.

Reference: "Least-Loaded Expert Parallelism" (notes); the bound is ours.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from moe_adapt.errors import UserError

__all__ = ["Share", "load_bound", "loads", "plan"]


class Share(NamedTuple):
    """Tokens of one expert on one device.

    Attributes:
        expert: The expert.
        device: The device.
        tokens: How many tokens.
    """

    expert: int
    device: int
    tokens: int


def plan(
    counts: Sequence[int], world: int, factor: float = 1.1, chunk: int = 1024, skip: float = 1.3
) -> list[Share]:
    """Return who computes what; the shares of an expert add up to its tokens.

    Args:
        counts: Tokens of each expert, [E].
        world: Number of devices, `W`.
        factor: Capacity of a device over the mean load. Lower: more even, more tokens travel.
        chunk: Fewest tokens that are handed over at once.
        skip: Fullest device over the mean below which nothing is handed over.

    Raises:
        UserError: For a negative count, no device, a factor below 1, or a chunk below 1.

    >>> [tuple(share) for share in plan([6, 2, 0, 0], world=2, factor=1.0, chunk=1)]
    [(0, 0, 4), (0, 1, 2), (1, 1, 2)]
    """
    if world < 1 or chunk < 1 or factor < 1 or any(count < 0 for count in counts):
        raise UserError(
            "a plan needs counts from 0 on, and a device, a factor and a chunk of at least 1; got "
            f"{list(counts)}, {world}, {factor}, {chunk}."
        )
    native = [expert * world // len(counts) for expert in range(len(counts))]
    plain = [Share(expert, native[expert], count) for expert, count in enumerate(counts) if count]
    mean = sum(counts) / world
    if max(loads(plain, world)) <= skip * mean:
        return plain
    capacity, full = math.ceil(factor * mean), [0] * world
    shares: list[Share] = []
    for expert in sorted(range(len(counts)), key=lambda e: (-counts[e], e)):
        device, left = native[expert], counts[expert]
        part = min(left, max(0, capacity - full[device]))
        while left:
            if part:
                shares.append(Share(expert, device, part))
                full[device] += part
                left -= part
            device = min(range(world), key=lambda d: (full[d], d))
            part = min(left, max(capacity - full[device], chunk))
    return _joined(shares)


def loads(shares: Sequence[Share], world: int) -> list[int]:
    """Return the tokens of each device, [W]."""
    found = [0] * world
    for share in shares:
        found[share.device] += share.tokens
    return found


def load_bound(
    counts: Sequence[int], world: int, factor: float = 1.1, chunk: int = 1024, skip: float = 1.3
) -> float:
    """Return the most tokens that a device of `plan` can have."""
    mean = sum(counts) / world
    return max(math.ceil(factor * mean), mean + chunk, skip * mean)


def _joined(shares: Sequence[Share]) -> list[Share]:
    found: dict[tuple[int, int], int] = {}
    for expert, device, tokens in shares:
        found[expert, device] = found.get((expert, device), 0) + tokens
    return [Share(*place, tokens) for place, tokens in sorted(found.items())]
