"""Where the Triton kernels run in a test, the interpreter or a CUDA device, and how exact they must be."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from moe_adapt.kernels import routed_lora
from tests.kernels.problems import gradients, problem, slots

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
#: The modules of the suite run in the interpreter, in a process of their own, and under ``-m gpu``.
MARKS: list[Any] = (
    []
    if INTERPRETED
    else [
        pytest.mark.gpu,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    ]
)
NAMES = ("y", "base", "x", "a", "b", "gates")


@contextmanager
def poisoned() -> Iterator[None]:
    """Fill what `torch.empty` returns with NaN, so that a number that nobody wrote shows."""

    def spoil(make):
        def made(*args, **kwargs):
            tensor = make(*args, **kwargs)
            return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

        return made

    with (
        mock.patch.object(torch, "empty", spoil(torch.empty)),
        mock.patch.object(torch, "empty_like", spoil(torch.empty_like)),
    ):
        yield


def outcome(tensors: list[Tensor], impl: str, dy: Tensor | None = None, **options: Any) -> list[Tensor]:
    """Return `y` and the gradients of base, x, a, b and the gates or weights.

    Args:
        tensors: base, x, a, b, and gates or, with an index among the options, weights.
        impl: Name of the implementation.
        dy: Gradient of `y`; None takes that of `gradients`.
        options: Options of `routed_lora`.
    """
    base, x, a, b, weights = tensors
    name = "weight" if "index" in options else "gates"
    y = routed_lora(x, base, a, b, 1.5, impl=impl, **{name: weights}, **options)
    return [y.detach(), *gradients(y, tensors, dy)]


def drawn(
    shape: tuple[int, ...], dtype: torch.dtype, k: int | None, seed: int = 0
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Return leaves and options of a problem: dense gates, or `k` slots.

    Args:
        shape: N, d, o, E, r.
        dtype: Type of tokens and experts; gates are fp32.
        k: Slots; None for dense gates.
        seed: Seed.
    """
    tensors = problem(*shape, dtype=dtype, seed=seed)
    options = {}
    if k is not None:
        options["index"], tensors[4] = slots(shape[0], shape[3], min(k, shape[3]), torch.float32, seed)
        options["index"] = options["index"].to(DEVICE)
    tensors = [tensor.detach().to(DEVICE).requires_grad_() for tensor in tensors]
    tensors[4] = tensors[4].detach().float().requires_grad_()
    return tensors, options


def widened(tensors: list[Tensor]) -> list[Tensor]:
    """Return the same numbers in float64, as leaves."""
    return [tensor.detach().double().requires_grad_() for tensor in tensors]


def assert_as_exact(found: list[Tensor], plain: list[Tensor], truth: list[Tensor]) -> None:
    """Compare with float64: at most twice the error of the plain form in the same type, plus 1e-6 or two ulp.

    The interpreter cuts bf16 off instead of rounding, and so may lose a unit in the last place more.
    """
    for name, mine, other, true in zip(NAMES[: len(found)], found, plain, truth, strict=True):
        assert mine.isfinite().all(), name
        largest = true.abs().max().item() if true.numel() else 0.0
        if largest == 0:
            assert (mine == 0).all(), name
            continue
        error, usual = ((value.double() - true).abs().max().item() / largest for value in (mine, other))
        slack = 2 * torch.finfo(mine.dtype).eps if INTERPRETED and mine.dtype == torch.bfloat16 else 0.0
        assert error <= 2 * usual + 1e-6 + slack, f"{name}: error {error:.2e}, plain form {usual:.2e}"
