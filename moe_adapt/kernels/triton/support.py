"""Whether the Triton path can run on a device, and whether it computes what it should there."""

import os
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from moe_adapt.kernels.problem import Operands
from moe_adapt.kernels.reference import forward as reference

__all__ = ["interpreted", "missing", "works"]

#: Largest error of the feature check relative to the largest value, by dtype of tokens and experts.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 6e-2}


@cache
def interpreted() -> bool:
    """Return whether the kernels run in Triton's interpreter (``TRITON_INTERPRET=1`` at their import)."""
    import triton

    from moe_adapt.kernels.triton.shrink import shrink_kernel

    return not isinstance(shrink_kernel, triton.JITFunction)


def missing(device: str, dtype: torch.dtype) -> str:
    """Return what the kernels lack on a device type for a dtype, or an empty string."""
    if find_spec("triton") is None:
        return "triton is not installed"
    if dtype not in TOLERANCE:
        known = ", ".join(str(known).removeprefix("torch.") for known in TOLERANCE)
        return f"its kernels take {known}, not {str(dtype).removeprefix('torch.')}"
    if device == "cuda":
        if torch.version.hip is None and torch.cuda.get_device_capability() < (8, 0):
            return "it needs a GPU of compute capability 8.0 or newer"
        return ""
    if device == "cpu" and os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on"):
        return ""
    return f"it needs a CUDA device (or TRITON_INTERPRET=1 for a slow check on the CPU), not {device}"


def works(run: Callable[[Operands], Tensor], device: str, dtype: torch.dtype) -> str:
    """Compare an implementation with the reference on a small case, forward and every gradient.

    Args:
        run: The implementation.
        device: Device type.
        dtype: Dtype of tokens and experts.

    Returns:
        What is wrong, or an empty string.
    """
    try:
        with torch.inference_mode(False):  # the first call may come from within an inference mode
            found = _outcome(run, device, dtype)
            expected = _outcome(reference, device, torch.float32, dtype)
    except Exception as error:  # whatever a compiler, driver or interpreter of another version raises
        return f"its feature check failed on {device} with {type(error).__name__}: {error}"
    for name, expectation in expected.items():
        off = float((found[name].float() - expectation).abs().max() / expectation.abs().max())
        if not off <= TOLERANCE[dtype]:
            return f"its feature check failed on {device}: {name} is off by {off:.1e} of the largest value"
    return ""


def _outcome(
    run: Callable[[Operands], Tensor], device: str, dtype: torch.dtype, rounded: torch.dtype | None = None
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def values(*shape: int) -> Tensor:
        drawn = torch.randn(shape, generator=generator, device="cpu").to(rounded or dtype)
        return drawn.to(device, dtype).requires_grad_()

    tokens, features, experts, rank, slots = 20, 48, 3, 4, 2
    leaves = {
        "the gradient of x": values(tokens, features),
        "the gradient of base": values(tokens, features),
        "the gradient of A": values(experts, rank, features),
        "the gradient of B": values(features, experts, rank),
        "the gradient of the weights": values(tokens, slots),
    }
    x, base, a, b, weight = leaves.values()
    index = torch.randint(-1, experts, (tokens, slots), generator=generator, device="cpu").to(device)
    with torch.enable_grad(), torch.autocast(device, enabled=False):
        y = run(Operands(x, base, a, b, 0.5, index=index, weight=weight))
        gradients = torch.autograd.grad(y, list(leaves.values()), torch.ones_like(y))
    return {"the result": y.detach(), **dict(zip(leaves, gradients, strict=True))}
