"""Without gradients: one launch for up to four tokens, and results that go into a given tensor."""

import pytest
import torch

from moe_adapt.kernels import routed_lora
from moe_adapt.kernels.triton import decode, operator
from moe_adapt.kernels.triton import tiles as sizes
from moe_adapt.kernels.triton.tiles import decodes_at_once, forced, once_columns
from tests.kernels.triton.setting import DEVICE, INTERPRETED, MARKS, assert_as_exact, drawn, poisoned, widened

pytestmark = MARKS

BACKENDS = ["aot_eager"] if INTERPRETED else ["aot_eager", "inductor"]


def run(tensors, options, impl="triton", out=None):
    base, x, a, b, weights = tensors
    name = "weight" if "index" in options else "gates"
    with torch.no_grad():
        return routed_lora(x, base, a, b, 1.5, impl=impl, out=out, **{name: weights}, **options)


@pytest.fixture
def launches(monkeypatch):
    """Names of the decode kernels, in the order of their launches."""
    names = []

    class Counted:
        def __init__(self, name, kernel):
            self.name, self.kernel = name, kernel

        def __getitem__(self, grid):
            names.append(self.name)
            return self.kernel[grid]

    for name in ("decode_once_kernel", "decode_shrink_kernel", "decode_expand_kernel"):
        monkeypatch.setattr(decode, name, Counted(name, getattr(decode, name)))
    return names


#: N, d, o, E, r; K; forced tiles; type.
ONCE = [
    ((1, 50, 70, 4, 3), 1, {}, torch.float32),
    ((4, 150, 70, 4, 3), 3, {"features": 64}, torch.float32),
    ((3, 33, 1, 5, 1), 2, {"features": 16}, torch.float32),
    ((4, 17, 5, 3, 20), 3, {"features": 16}, torch.float16),
    ((2, 64, 40, 9, 8), 2, {}, torch.bfloat16),
]


@pytest.mark.parametrize("shape, k, tiles, dtype", ONCE)
def test_up_to_four_tokens_in_one_launch(shape, k, tiles, dtype, launches):
    tensors, options = drawn(shape, dtype, k)
    options["index"][0, 0], options["index"][-1, -1] = 0, -1
    with forced(**tiles), poisoned():
        found = run(tensors, options)
    assert launches == ["decode_once_kernel"]
    truth = run(widened(tensors), options, "reference")
    assert_as_exact([found], [run(tensors, options, "stacked")], [truth])


def test_one_launch_and_two_agree_and_repeat(launches, monkeypatch):
    tensors, options = drawn((4, 70, 33, 4, 3), torch.float32, 2)
    once = run(tensors, options)
    assert torch.equal(run(tensors, options), once)
    turned = [tensor.flip(0) if place in (0, 1, 4) else tensor for place, tensor in enumerate(tensors)]
    assert torch.equal(run(turned, {"index": options["index"].flip(0)}).flip(0), once)
    monkeypatch.setattr(sizes, "ONCE_TOKENS", 3)
    torch.testing.assert_close(run(tensors, options), once)
    assert launches == ["decode_once_kernel"] * 3 + ["decode_shrink_kernel", "decode_expand_kernel"]


def test_empty_slots_in_one_launch(launches):
    (base, x, a, b, weight), options = drawn((4, 20, 18, 4, 2), torch.float32, 2)
    index = torch.full_like(options["index"], -1)
    assert torch.equal(run([base, x, a, b, torch.full_like(weight, float("nan"))], {"index": index}), base)
    assert not run([None, x, a, b, weight], {"index": index}).any()
    none = {"index": index[:, :0]}
    assert torch.equal(run([base, x, a, b, weight[:, :0]], none), base)
    assert set(launches) == {"decode_once_kernel"}


def test_one_launch_where_little_is_read_again():
    assert decodes_at_once(4, 2, 8, 4096, 2)
    assert not decodes_at_once(5, 2, 8, 4096, 2)
    assert not decodes_at_once(4, 4, 16, 4096, 2)
    assert (once_columns(1, 4096, 8, 132), once_columns(4, 4096, 8, 132)) == (32, 128)
    assert (once_columns(1, 70, 3, 132), once_columns(4, 128256, 256, 132)) == (16, 16)


#: N, d, o, E, r; K; from how many columns on tokens are sorted; type.
INTO = [
    ((17, 24, 20, 4, 3), None, 512, torch.float32),
    ((33, 24, 20, 4, 3), 2, 512, torch.float16),
    ((33, 16, 20, 9, 4), 2, 0, torch.float32),
    ((33, 16, 20, 9, 4), 2, 0, torch.float16),
    ((6, 24, 20, 4, 3), 2, 512, torch.float32),
    ((3, 24, 20, 4, 3), 2, 512, torch.float16),
    ((0, 24, 20, 4, 3), 2, 512, torch.float32),
]


@pytest.mark.parametrize("shape, k, columns, dtype", INTO)
def test_into_a_given_tensor(shape, k, columns, dtype, monkeypatch):
    monkeypatch.setattr(sizes, "GROUPED_COLUMNS", columns)
    tensors, options = drawn(shape, dtype, k)
    tensors = [tensor.detach() for tensor in tensors]
    y = run(tensors, options)
    wide = torch.full((shape[0], shape[2] + 3), float("nan"), dtype=dtype, device=DEVICE)
    out = wide[:, 2:-1]
    with poisoned():
        assert run(tensors, options, out=out) is out
    assert torch.equal(out, y) and wide[:, :2].isnan().all() and wide[:, -1:].isnan().all()
    assert torch.equal(run([None, *tensors[1:]], options, out=out), run([None, *tensors[1:]], options))
    assert run(tensors, options, out=tensors[0]) is tensors[0]
    assert torch.equal(tensors[0], y)


@pytest.mark.parametrize("k, add", [(None, False), (2, True)])
def test_opcheck(k, add):
    tensors, options = drawn((3, 16, 24, 4, 2), torch.float32, k)
    base, x, a, b, gates = (tensor.detach() for tensor in tensors)
    index = options["index"].int() if k else None
    summand = None if add else base
    out = torch.zeros(3, 24, device=DEVICE)
    torch.library.opcheck(operator.forward_into, (out, x, summand, a, b, gates, index, 1.5, add))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("in_place", [True, False])
def test_compiles_without_a_break(backend, in_place):
    torch._dynamo.reset()
    tensors, options = drawn((3, 16, 24, 4, 2), torch.float32, 2)
    base, *rest = (tensor.detach() for tensor in tensors)
    y = run([base, *rest], options)

    def doubled(base):
        made = base * 1
        return run([made, *rest], options, out=made if in_place else torch.zeros_like(base)) * 2

    compiled = torch.compile(doubled, fullgraph=True, backend=backend)
    torch.testing.assert_close(compiled(base), y * 2)
