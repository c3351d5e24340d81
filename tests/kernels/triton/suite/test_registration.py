"""The operator as PyTorch sees it: `opcheck`, `torch.compile`, autocast."""

import pytest
import torch

from moe_adapt.kernels import routed_lora
from moe_adapt.kernels.dispatch import choose
from moe_adapt.kernels.implementations import find
from moe_adapt.kernels.problem import Operands
from moe_adapt.kernels.triton import operator, tiles
from moe_adapt.kernels.triton.implementation import _checked
from tests.kernels.triton.setting import DEVICE, INTERPRETED, MARKS, drawn, outcome

pytestmark = MARKS

BACKENDS = ["aot_eager"] if INTERPRETED else ["aot_eager", "inductor"]


@pytest.mark.parametrize("k, columns", [(None, 512), (1, 0)])
def test_opcheck(k, columns, monkeypatch):
    monkeypatch.setattr(tiles, "GROUPED_COLUMNS", columns)
    (base, x, a, b, gates), options = drawn((5, 16, 24, 4, 2), torch.float32, k)
    index = options.get("index")
    flags = [True, False, True, True]
    torch.library.opcheck(operator.forward, (x, base, a, b, gates, index, 1.5, flags, True))
    torch.library.opcheck(operator.forward, (x, None, a, b, gates, index, 1.5, None, True))
    args = [tensor.detach() for tensor in (x, a, b, gates)]
    dy = torch.randn(5, 24, device=DEVICE)
    _, hidden = operator.forward(*args[:1], None, *args[1:], index, 1.5, None, True)
    torch.library.opcheck(
        operator.backward,
        (dy, *args, index, hidden, 1.5, flags, [True, True, False, True]),
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("k, columns", [(2, 512), (1, 0)])
def test_compiles_without_a_break(backend, k, columns, monkeypatch):
    torch._dynamo.reset()
    monkeypatch.setattr(tiles, "GROUPED_COLUMNS", columns)
    tensors, options = drawn((5, 16, 24, 4, 2), torch.float32, k)
    name = "gates" if k is None else "weight"

    def run(base, x, a, b, weights, index=None):
        return routed_lora(x * 2, base, a, b, 1.5, impl="triton", index=index, **{name: weights}) * 3

    compiled = torch.compile(run, fullgraph=True, backend=backend, dynamic=True)
    for tokens in (5, 4):
        leaves = [tensors[0][:tokens], tensors[1][:tokens], *tensors[2:4], tensors[4][:tokens]]
        leaves = [leaf.detach().requires_grad_() for leaf in leaves]
        index = {name: value[:tokens] for name, value in options.items()}
        results = []
        for function in (run, compiled):
            y = function(*leaves, **index)
            results.append([y, *torch.autograd.grad(y.sum(), leaves)])
        for mine, other in zip(*results, strict=True):
            torch.testing.assert_close(mine, other)


def test_autocast_reaches_the_experts():
    tensors, options = drawn((6, 16, 24, 3, 2), torch.float32, 2)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        y, *found = outcome(tensors, "triton", **options)
    exact, *truth = outcome(tensors, "triton", **options)
    assert y.dtype == torch.float32
    assert not torch.equal(y, exact)
    for mine, other in zip((y, *found), (exact, *truth), strict=True):
        assert mine.dtype == other.dtype
        torch.testing.assert_close(mine, other, rtol=0.05, atol=0.05 * other.abs().max().item())


def test_the_first_call_may_be_in_inference_mode():
    _checked.cache_clear()
    with torch.inference_mode():
        assert _checked(DEVICE, torch.float32) == ""
    _checked.cache_clear()


@pytest.mark.skipif(not INTERPRETED, reason="is about the interpreter")
def test_the_interpreter_is_never_chosen():
    (base, x, a, b, gates), _ = drawn((8, 16, 12, 3, 4), torch.float16, None)
    problem = Operands(x, base, a, b, 1.0, gates).problem()
    assert find("triton").refusal(problem) == ""
    assert choose(problem) != "triton"
