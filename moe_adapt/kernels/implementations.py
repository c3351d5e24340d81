"""Implementations of the operator, where they register themselves, and where the dispatcher finds them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from moe_adapt.errors import UserError, did_you_mean
from moe_adapt.kernels.problem import Operands, Problem

__all__ = ["Implementation", "Work", "find", "implementations", "register"]


class Work(NamedTuple):
    """What a call costs an implementation, forward and, if the problem trains, backward.

    Attributes:
        flop: Floating-point operations of its matrix products.
        bytes: Bytes of tokens, results and factors that it reads and writes.
        calls: Operations that it starts.
        segments: Experts that it handles one by one.
        hidden: Bytes in rank space that element-wise operations read and write.
    """

    flop: float
    bytes: float
    calls: float
    segments: float = 0
    hidden: float = 0


@dataclass(frozen=True)
class Implementation:
    """One way to compute the operator.

    Attributes:
        name: What ``impl=`` and ``MOE_ADAPT_KERNEL`` call it.
        forward: Computes [N, o] from checked operands, with gradients through autograd; writes into their
            `out`, if there is one, and returns it.
        supports: Says why it cannot compute a problem, or nothing; looks at shapes, types and flags only.
        available: Says why it does not work on a device type with a dtype (a feature check against the
            reference on a small case, cached by the implementation), or nothing.
        work: What a problem costs it; None keeps it out of the automatic choice.
    """

    name: str
    forward: Callable[[Operands], Tensor]
    supports: Callable[[Problem], str]
    available: Callable[[str, torch.dtype], str]
    work: Callable[[Problem], Work] | None = None

    def refusal(self, problem: Problem) -> str:
        """Return why this implementation cannot take the problem, or an empty string."""
        return self.supports(problem) or self.available(problem.device, problem.dtype)


_IMPLEMENTATIONS: dict[str, Implementation] = {}


def register(implementation: Implementation) -> None:
    """Make an implementation known; the same name again replaces it (a reloaded module)."""
    _IMPLEMENTATIONS[implementation.name] = implementation


def implementations() -> Iterator[Implementation]:
    """Yield all implementations, in the order of their registration."""
    yield from _IMPLEMENTATIONS.values()


def find(name: str) -> Implementation:
    """Return the implementation `name`.

    Raises:
        UserError: If there is none.
    """
    if name not in _IMPLEMENTATIONS:
        raise UserError(
            f"there is no kernel {name!r}.{did_you_mean(name, _IMPLEMENTATIONS)} "
            f"Known: auto, {', '.join(sorted(_IMPLEMENTATIONS))}."
        )
    return _IMPLEMENTATIONS[name]
