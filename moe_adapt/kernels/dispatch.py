"""Which implementation computes a problem: one named by the caller or the environment, else the cheapest.

One expert always runs the reference, which is bit-equal to PEFT's LoRA, unless the caller names another. What
a call costs an implementation is estimated from the work that it does (`Implementation.work`):

    seconds = flop * per_flop + bytes * per_byte + calls * per_call + segments * per_segment
              + hidden * per_hidden

with constants per device class, dtype and implementation from a file in `costs/`, which
``python -m moe_adapt.kernels.tune`` writes. Where a device class has no constants, Triton is taken if it
works there, else the stacked form. The choice depends on shapes, types and flags alone, never on values and
never on timings at run time, so that it is the same in every run and under a captured graph.
"""

import json
import logging
import math
import os
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

from moe_adapt.errors import UserError
from moe_adapt.kernels.implementations import Implementation, find, implementations
from moe_adapt.kernels.problem import Problem

__all__ = ["COSTS", "KERNEL_VARIABLE", "Candidate", "choose", "explain", "load_costs"]

#: Environment variable that names the implementation for ``impl="auto"``.
KERNEL_VARIABLE = "MOE_ADAPT_KERNEL"
#: The folder of the files of constants.
COSTS = Path(__file__).parent / "costs"
#: What to take, in this order, on a device class without constants.
UNTUNED = ("triton", "stacked")

logger = logging.getLogger(__name__)


class Candidate(NamedTuple):
    """What the dispatcher knows about an implementation for a problem.

    Attributes:
        name: The implementation.
        refusal: Why it cannot compute the problem, or nothing.
        seconds: Estimated time; None if the device class has no constants for it.
        chosen: Whether it is what ``impl="auto"`` runs.
    """

    name: str
    refusal: str
    seconds: float | None
    chosen: bool


@cache
def load_costs(device: str) -> dict[str, dict[str, list[float]]]:
    """Return the constants of a device class by implementation and dtype; empty if there are none.

    Args:
        device: Device type, such as ``"cpu"``.
    """
    path = COSTS / f"{device}.json"
    return json.loads(path.read_text(encoding="utf-8"))["seconds_per"] if path.is_file() else {}


def _estimate(implementation: Implementation, problem: Problem) -> float | None:
    name = str(problem.dtype).removeprefix("torch.")
    constants = load_costs(problem.device).get(implementation.name, {}).get(name)
    if constants is None or implementation.work is None:
        return None
    work = implementation.work(problem)
    return sum(amount * seconds for amount, seconds in zip(work, constants, strict=True))


@lru_cache(maxsize=4096)
def _cheapest(problem: Problem) -> str:
    if problem.experts == 1:
        return "reference"
    able = [candidate for candidate in implementations() if not candidate.refusal(problem)]
    priced = {
        candidate.name: seconds
        for candidate in able
        if (seconds := _estimate(candidate, problem)) is not None
    }
    names = {c.name for c in able if c.work is None or all(map(math.isfinite, c.work(problem)))}
    name = min(priced, key=priced.__getitem__) if priced else next(n for n in UNTUNED if n in names)
    logger.debug("kernel %s for %s; estimates in seconds: %s", name, problem, priced or "none")
    return name


def choose(problem: Problem, impl: str = "auto") -> str:
    """Return the name of the implementation that computes a problem.

    Args:
        problem: What is to be computed.
        impl: Name of an implementation, or ``"auto"``.

    Raises:
        UserError: If the named implementation does not exist or cannot take this problem.
    """
    name = os.environ.get(KERNEL_VARIABLE, "auto") if impl == "auto" and problem.experts > 1 else impl
    if name == "auto":
        return _cheapest(problem)
    refusal = find(name).refusal(problem)
    if refusal:
        raise UserError(f"the kernel {name!r} cannot compute this: {refusal}; use impl='auto'.")
    return name


def explain(problem: Problem) -> list[Candidate]:
    """Return what is known about every implementation for a problem, and which one ``"auto"`` runs.

    Args:
        problem: What is to be computed.
    """
    chosen = choose(problem)
    found = []
    for implementation in implementations():
        refusal = implementation.refusal(problem)
        seconds = None if refusal else _estimate(implementation, problem)
        found.append(Candidate(implementation.name, refusal, seconds, implementation.name == chosen))
    return found
