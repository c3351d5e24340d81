"""What would be launched, compiled for GPUs that are not there: types, sizes, shared memory, spills."""

import re

import pytest
import torch

pytest.importorskip("triton")

from moe_adapt.kernels.triton import operator, tiles
from tests.kernels.problems import Made, problem, slots
from tests.kernels.triton.offline import compiled, recorded

#: Shared memory of one block on the smallest supported GPUs (compute capability 8.6 and 8.9), in bytes.
SHARED = 99 * 1024
HALF = torch.bfloat16
#: N, d, o, E, r, K (0: dense gates), dtype, whether a gradient is wanted.
TYPICAL = (2048, 4096, 4096, 8, 16, 2, HALF, True)
CASES = [
    (8192, 4096, 4096, 8, 8, 2, HALF, True),
    (2048, 4096, 4096, 16, 16, 2, HALF, True),
    (2048, 4096, 11008, 64, 16, 0, HALF, True),
    (2048, 768, 768, 5, 3, 0, torch.float16, True),
    (257, 576, 1536, 4, 256, 2, HALF, True),
    (16, 768, 768, 8, 8, 2, HALF, True),
    (2048, 4096, 4096, 16, 16, 2, torch.float32, True),
    (8192, 1024, 1024, 8, 8, 0, torch.float32, True),
    (8192, 4096, 4096, 64, 16, 2, HALF, True),
    (2048, 2048, 1408, 64, 64, 6, HALF, True),
    (100, 1024, 1024, 16, 256, 2, torch.float32, True),
    (1, 4096, 4096, 8, 8, 2, HALF, False),
    (4, 2049, 1408, 8, 64, 4, torch.float16, False),
    (3, 576, 70, 8, 3, 2, torch.float32, False),
    (32, 2049, 4096, 32, 64, 1, torch.float16, False),
    (16, 768, 768, 4, 256, 4, torch.float32, False),
]


def usages(tokens, width, out, experts, rank, k, dtype, trains, capability):
    """Yield each kernel of a forward and, if it trains, a backward pass with what it needs."""

    def tensor(*shape, dtype=dtype):
        return torch.empty(shape, dtype=dtype, device="meta")

    x, base, a, b = (
        tensor(tokens, width),
        tensor(tokens, out),
        tensor(experts, rank, width),
        tensor(out, experts, rank),
    )
    gates = tensor(tokens, k or experts, dtype=torch.float32)
    index = tensor(tokens, k, dtype=torch.int32) if k else None
    flags = [expert > 0 for expert in range(experts)]
    with recorded() as launches:
        y, hidden = operator.forward._init_fn(x, base, a, b, gates, index, 2.0, flags, trains)
        if trains:
            operator.backward._init_fn(y, x, a, b, gates, index, hidden, 2.0, flags, [True] * 4)
    assert launches
    for launch in launches:
        assert all(size > 0 for size in launch.grid) and launch.grid[1:] <= (65535,)
        yield launch.kernel.__name__, compiled(launch, capability)


def check(case, capability):
    for name, usage in usages(*case, capability):
        assert usage.shared <= SHARED, f"{name} asks for {usage.shared} bytes of shared memory"
        assert usage.stack <= 64, f"{name} spills {usage.stack} bytes"
        products = "shrink_kernel" in name or "expand_kernel" in name or "gradient" in name
        if products and "decode" not in name and case[6] is not torch.float32:
            assert "mma" in usage.ptx, f"{name} does not use the matrix units"
        assert not re.search(r"\s(atom|red)\.", usage.ptx), f"{name} uses atomics"


def test_compiles_for_an_h100(monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    check(TYPICAL, 90)


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("case", [TYPICAL, *CASES])
def test_compiles_for(case, capability, monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    check(case, capability)


@pytest.mark.parametrize("k, columns, tokens", [(None, 512, 64), (2, 0, 64), (2, 512, 32), (2, 512, 4)])
def test_nothing_as_wide_as_the_result_is_made_for_a_given_tensor(k, columns, tokens, monkeypatch):
    monkeypatch.setattr(tiles, "GROUPED_COLUMNS", columns)
    (base, x, a, b, gates) = (tensor.detach() for tensor in problem(tokens, 8, 128, 9, 1, torch.float32))
    index = None
    if k:
        index, gates = (tensor.detach() for tensor in slots(tokens, 9, k, torch.float32))
    for out, add in ((base, True), (torch.zeros_like(base), False)):
        with Made() as made, recorded() as launches:
            operator.forward_into._init_fn(out, x, None if add else base, a, b, gates, index, 1.5, add)
        assert launches and not made.as_large_as(out)
    with Made() as made, recorded():
        operator.forward._init_fn(x, base, a, b, gates, index, 1.5, None, False)
    assert made.as_large_as(base)
