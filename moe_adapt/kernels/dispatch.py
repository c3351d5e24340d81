"""Which implementation computes a problem: one named by the caller or the environment, else by rule.

One expert always runs the reference, which is bit-equal to PEFT's LoRA, unless the caller names another.
The choice depends on shapes, types and flags alone, never on values, so that it is the same in every run and
under a captured graph.
"""

import os

from moe_adapt.errors import UserError
from moe_adapt.kernels.implementations import find
from moe_adapt.kernels.problem import Problem

__all__ = ["KERNEL_VARIABLE", "choose"]

#: Environment variable that names the implementation for ``impl="auto"``.
KERNEL_VARIABLE = "MOE_ADAPT_KERNEL"


def choose(problem: Problem, impl: str = "auto") -> str:
    """Return the name of the implementation that computes a problem.

    Args:
        problem: What is to be computed.
        impl: Name of an implementation, or ``"auto"``.

    Raises:
        UserError: If the named implementation does not exist or cannot take this problem.
    """
    if impl == "auto" and problem.experts == 1:
        return "reference"
    name = os.environ.get(KERNEL_VARIABLE, "auto") if impl == "auto" else impl
    if name != "auto":
        refusal = find(name).refusal(problem)
        if refusal:
            raise UserError(f"the kernel {name!r} cannot compute this: {refusal}; use impl='auto'.")
        return name
    return "stacked"
