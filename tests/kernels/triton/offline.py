"""Compile what the launchers launch for a GPU that is not there: catches what the interpreter lets pass.

The launch itself is recorded instead of run; types, constants and alignment are taken from its arguments as
Triton's own launcher takes them. The cubin tells shared memory, registers and spills.
"""

import inspect
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TYPES = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int32: "*i32",
    torch.bool: "*i1",
}
OPTIONS = ("num_warps", "num_stages")


@dataclass(frozen=True)
class Launch:
    """One recorded launch."""

    kernel: Any
    grid: tuple[int, ...]
    args: tuple
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class Usage:
    """What a compiled kernel needs of a multiprocessor, and its assembly."""

    shared: int
    registers: int
    stack: int
    ptx: str


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Record launches instead of running them."""
    launches: list[Launch] = []

    def run(self, *args, grid, warmup, **kwargs):
        launches.append(Launch(self, grid, args, kwargs))

    with mock.patch.object(triton.JITFunction, "run", run):
        yield launches


def compiled(launch: Launch, capability: int = 90) -> Usage:
    """Compile a launch for a CUDA GPU."""
    options = {name: launch.kwargs[name] for name in OPTIONS if name in launch.kwargs}
    rest = {name: value for name, value in launch.kwargs.items() if name not in OPTIONS}
    bound = inspect.signature(launch.kernel.fn).bind(*launch.args, **rest).arguments
    constants = {param.name for param in launch.kernel.params if param.is_constexpr}
    signature, constexprs, attrs = {}, {}, {}
    for place, (name, value) in enumerate(bound.items()):
        if isinstance(value, torch.Tensor):
            signature[name] = TYPES[value.dtype]
            attrs[(place,)] = [["tt.divisibility", 16]]
        elif name in constants or (isinstance(value, int) and value == 1):
            signature[name] = "constexpr"
            constexprs[name] = value
        elif isinstance(value, int):
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0:
                attrs[(place,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "fp32"
    source = ASTSource(fn=launch.kernel, signature=signature, constexprs=constexprs, attrs=attrs)
    kernel = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    return Usage(kernel.metadata.shared, *_resources(kernel.asm["cubin"]), kernel.asm["ptx"])


def _resources(cubin: bytes) -> tuple[int, int]:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin", delete=False) as file:
        file.write(cubin)
    try:
        text = subprocess.run(
            [tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    finally:
        os.unlink(file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    assert found, text
    return int(found[1]), int(found[2])
