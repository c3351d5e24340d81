"""The Triton kernels on a CUDA device, over the shapes that other projects test theirs with.

Shapes from the test suites of vLLM (Punica operators, split-K, fused mixture LoRA), Punica, ScatterMoE,
axolotl, unsloth-zoo and omni-moe. The tolerance is our own: at most twice the error of the plain torch form.
Run with ``-m gpu``.
"""

import itertools

import pytest
import torch

from moe_adapt.kernels import routed_lora
from moe_adapt.kernels.serving import AdapterStack, mixed_batch
from tests.kernels.problems import gradients
from tests.kernels.triton.setting import assert_as_exact, drawn, outcome, poisoned, widened

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

HALVES = [torch.float16, torch.bfloat16]


def check(shape, dtype, k, seed=0):
    tensors, options = drawn(shape, dtype, k, seed)
    with poisoned():
        found = outcome(tensors, "triton", **options)
    plain = outcome(tensors, "stacked", **options)
    assert_as_exact(found, plain, outcome(widened(tensors), "stacked", **options))


def adapters(count, rank, width, out, dtype):
    generator = torch.Generator("cuda").manual_seed(count + rank)

    def normal(*shape):
        return torch.randn(shape, generator=generator, device="cuda", dtype=torch.float32).to(dtype)

    return [(normal(rank, width), normal(out, rank), 0.5) for _ in range(count)]


def check_serving(tokens, count, rank, width, out, dtype):
    stack = AdapterStack.of(adapters(count, rank, width, out, dtype))
    x = torch.randn(tokens, width, device="cuda").to(dtype)
    base = torch.randn(tokens, out, device="cuda").to(dtype)
    ids = torch.randint(-1, count, (tokens,), device="cuda", dtype=torch.int32)
    with torch.no_grad(), poisoned():
        found = mixed_batch(x, base, stack, ids, "triton")
    assert torch.equal(found[ids < 0], base[ids < 0])
    wide = AdapterStack(stack.a.double(), stack.b.double(), stack.scales)
    plain = mixed_batch(x, base, stack, ids, "stacked")
    assert_as_exact([found], [plain], [mixed_batch(x.double(), base.double(), wide, ids, "stacked")])


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("rank", [1, 4, 8, 16, 32, 64, 128, 256])
def test_adapters_in_one_batch(rank, dtype):
    for batch, count in itertools.product([1, 4, 16, 32], [1, 8, 32, 128]):
        check_serving(batch, count, rank, 2049, 2049, dtype)
    check_serving(4 * 128, 8, rank, 2049, 2049, dtype)


@pytest.mark.parametrize(
    "size", [128, 1024, 1408, 2752, 4096, 6912, 11008, 14336, 22016, 32000, 51328, 128256]
)
@pytest.mark.parametrize("part", [1, 2, 8, 16, 64])
def test_widths_of_language_models(size, part):
    check_serving(4, 4, 32, size // part, size // part, torch.bfloat16)
    check_serving(4 * 16, 4, 32, size // part, 256, torch.float16)


@pytest.mark.parametrize("width, rank, dtype", [
    (2560, 8, torch.bfloat16),
    (9728, 16, torch.float16),
    (4097, 64, torch.bfloat16),
    (1024, 8, torch.float16),
])  # fmt: skip
def test_split_sums_give_the_same_bits(width, rank, dtype):
    for tokens in (1, 31, 32, 33, 64, 127, 128, 129):
        tensors, options = drawn((tokens, width, 512, 4, rank), dtype, 2)
        first = outcome(tensors, "triton", **options)
        for _ in range(20):
            for mine, other in zip(outcome(tensors, "triton", **options), first, strict=True):
                assert torch.equal(mine, other)


@pytest.mark.parametrize("k, rank", [(6, 16), (12, 16), (6, 32), (12, 64), (6, 128), (6, 256)])
def test_mixtures_of_64_experts(k, rank):
    check((100, 2048, 1408, 64, rank), torch.bfloat16, k)


@pytest.mark.parametrize("tokens, k, experts", list(itertools.product([1, 2, 4, 8], [1, 2], [64, 128])))
def test_a_few_tokens_of_many_experts(tokens, k, experts):
    check((tokens, 512, 256, experts, 16), torch.float16, k)
    check_serving(tokens, experts, 16, 2048, 1408, torch.bfloat16)


@pytest.mark.parametrize("rank", [16, 32, 64, 96, 128])
@pytest.mark.parametrize("width, out", [(4096, 11008), (11008, 4096)])
def test_layers_of_a_7b_model(width, out, rank):
    for dtype in HALVES:
        check_serving(7, 7, rank, width, out, dtype)
    check((96, width, out, 3, rank), torch.bfloat16, 1)


@pytest.mark.parametrize("tokens", [1, 256, 512])
@pytest.mark.parametrize("width", [128, 256, 512, 600, 100])
@pytest.mark.parametrize("k", [2, 3, 4])
def test_mlp_widths_in_full_precision(tokens, width, k):
    check((tokens, width, width, 8, 8), torch.float32, k)


@pytest.mark.parametrize("shape, k", [
    ((16, 64, 64, 4, 8), 1),
    ((32, 64, 128, 4, 8), 2),
    ((16, 128, 128, 8, 32), 2),
    ((32, 64, 64, 4, 4), 1),
    ((64, 64, 64, 16, 8), 2),
    ((17, 96, 80, 6, 16), 2),
    ((1, 64, 64, 4, 8), 1),
    ((64, 32, 48, 8, 2), 2),
])  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_small_mixtures(shape, k, dtype):
    check(shape, dtype, k)
    check(shape, dtype, None)


@pytest.mark.parametrize("tokens", [0, 1, 17, 63, 64, 65, 255, 257, 1000, 2049])
@pytest.mark.parametrize("rank, experts, k", [
    (1, 64, 3), (3, 5, None), (8, 1, None), (8, 8, 8), (16, 64, 2), (24, 16, None), (256, 4, 2), (5, 33, 33),
])  # fmt: skip
def test_odd_sizes(tokens, rank, experts, k):
    check((tokens, 321, 203, experts, rank), torch.bfloat16, k, seed=tokens)


@pytest.mark.parametrize("experts", [1024, 4096])
def test_thousands_of_experts(experts):
    check((1024, 256, 256, experts, 1), torch.bfloat16, 32)


@pytest.mark.parametrize("shape", [(7, 16, 12, 4, 4), (64, 128, 96, 4, 8)])
def test_gates_next_to_zero(shape):
    tensors, _ = drawn(shape, torch.float32, None)
    values = torch.tensor([0.0, 1e-30, -1e-30, -0.5], device="cuda")
    tensors[4] = values.expand(shape[0], 4).contiguous().requires_grad_()
    found, truth = outcome(tensors, "triton"), outcome(widened(tensors), "reference")
    assert_as_exact(found, outcome(tensors, "stacked"), truth)
    assert found[5].abs().min() > 0


@pytest.mark.parametrize("k, experts, rank", [(None, 8, 8), (2, 8, 8), (2, 64, 16)])
def test_a_captured_graph_follows_new_routing(k, experts, rank):
    tensors, options = drawn((256, 512, 384, experts, rank), torch.bfloat16, k)
    dy = torch.randn(256, 384, device="cuda", dtype=torch.bfloat16)

    def step():
        return outcome(tensors, "triton", dy, **options)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    others, other_options = drawn((256, 512, 384, experts, rank), torch.bfloat16, k, seed=1)
    larger, larger_options = drawn((4096, 1024, 2048, experts, rank), torch.bfloat16, k, seed=2)
    with torch.no_grad():
        for tensor, other in zip(tensors, others, strict=True):
            tensor.copy_(other)
        for name, value in other_options.items():
            options[name].copy_(value)
    outcome(larger, "triton", **larger_options)
    graph.replay()
    torch.cuda.synchronize()
    for mine, other in zip(captured, step(), strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("k, experts, rank", [(None, 8, 8), (2, 8, 8), (2, 64, 16)])
def test_two_streams(k, experts, rank):
    problems = [drawn((257, 512, 384, experts, rank), torch.bfloat16, k, seed) for seed in (0, 1)]
    expected = [outcome(tensors, "triton", **options) for tensors, options in problems]
    streams = [torch.cuda.Stream() for _ in problems]
    torch.cuda.synchronize()
    for _ in range(50):
        found = []
        for stream, (tensors, options) in zip(streams, problems, strict=True):
            with torch.cuda.stream(stream):
                found.append(outcome(tensors, "triton", **options))
        torch.cuda.synchronize()
        for mine, other in zip(itertools.chain(*found), itertools.chain(*expected), strict=True):
            assert torch.equal(mine, other)


def test_nothing_waits_for_the_device():
    for k, experts in ((None, 8), (2, 8), (2, 64)):
        tensors, options = drawn((512, 256, 256, experts, 16), torch.bfloat16, k)
        dy = torch.ones(512, 256, device="cuda", dtype=torch.bfloat16)
        outcome(tensors, "triton", dy, **options)
        torch.cuda.set_sync_debug_mode("error")
        try:
            outcome(tensors, "triton", dy, **options)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def peak(step):
    step()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


@pytest.mark.parametrize("k", [None, 2])
def test_memory_is_that_of_plain_lora_of_the_whole_rank(k):
    tokens, width, out, experts, rank = 8192, 2048, 2048, 8, 16
    (base, x, a, b, gates), options = drawn((tokens, width, out, experts, rank), torch.bfloat16, k)
    down = a.detach().reshape(-1, width).requires_grad_()
    up = b.detach().reshape(out, -1).requires_grad_()
    name = "gates" if k is None else "weight"

    def routed():
        y = routed_lora(x, base, a, b, 1.5, impl="triton", **{name: gates}, **options)
        gradients(y, [base, x, a, b, gates], torch.ones_like(y))

    def plain():
        y = base + torch.nn.functional.linear(torch.nn.functional.linear(x, down), up) * 1.5
        gradients(y, [base, x, down, up], torch.ones_like(y))

    assert peak(routed) <= 1.05 * peak(plain)
    assert peak(routed) < tokens * experts * out * 2


def test_cpu_tensors_in_a_cuda_process():
    tensors, _ = drawn((9, 16, 12, 3, 4), torch.float32, None)
    base, x, a, b, gates = (tensor.detach().cpu() for tensor in tensors)
    y = routed_lora(x, base, a, b, 1.5, gates=gates)
    torch.testing.assert_close(y, routed_lora(x, base, a, b, 1.5, gates=gates, impl="reference"))
