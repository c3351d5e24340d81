"""`routed_lora(out=...)`: the same result in a given tensor, `base` included, and what is refused."""

import pytest
import torch

from moe_adapt.errors import UserError
from moe_adapt.kernels import routed_lora
from tests.kernels.problems import Made, problem, slots

IMPLEMENTATIONS = ["auto", "reference", "stacked", "grouped"]
HALF, FULL = torch.bfloat16, torch.float32


def operands(experts=4, dtype=FULL, base_dtype=FULL, tokens=9):
    base, x, a, b, _ = (tensor.detach() for tensor in problem(tokens, 6, 5, experts, 2, dtype=dtype))
    index, weight = slots(tokens, experts, min(2, experts), FULL)
    return {
        "x": x, "base": base.to(base_dtype), "a": a, "b": b, "scale": 1.5, "index": index,
        "weight": weight.detach(),
    }  # fmt: skip


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("experts", [1, 4])
@pytest.mark.parametrize("dtype, base_dtype", [(FULL, FULL), (HALF, HALF), (FULL, HALF), (HALF, FULL)])
@pytest.mark.parametrize("target", ["new", "strided", "base", "no base"])
def test_gives_the_bits_of_a_new_tensor(impl, experts, dtype, base_dtype, target):
    given = operands(experts, dtype, base_dtype)
    if target == "no base":
        given["base"] = None
    y = routed_lora(**given, impl=impl)
    if target == "base" and base_dtype != y.dtype:
        with pytest.raises(UserError, match=r"out is torch\.bfloat16, but the result torch.float32"):
            routed_lora(**given, impl=impl, out=given["base"])
        return
    nan = torch.full((9, 11), float("nan"), dtype=y.dtype)
    out = {"base": given["base"], "strided": nan[:, 3:8]}.get(target, nan[:, :5].contiguous())
    assert routed_lora(**given, impl=impl, out=out) is out
    assert torch.equal(out, y)
    assert nan[:, :3].isnan().all() and nan[:, 8:].isnan().all()


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_no_tokens_and_no_experts(impl):
    empty = operands(tokens=0)
    assert routed_lora(**empty, impl=impl, out=empty["base"]).shape == (0, 5)
    given = operands()
    given["index"] = torch.full_like(given["index"], -1)
    before = given["base"].clone()
    assert torch.equal(routed_lora(**given, impl=impl, out=given["base"]), before)


@pytest.mark.parametrize("experts", [1, 4])
def test_under_autocast_and_with_a_shared_down_projection(experts):
    given = operands(experts, base_dtype=HALF)
    with torch.autocast("cpu", HALF):
        y = routed_lora(**given)
        assert torch.equal(routed_lora(**given, out=torch.empty_like(y)), y) and y.dtype == HALF
    given |= {"a": given["a"][:1], "base": given["base"].float()}
    for base in (given["base"], None):
        given["base"] = base
        y = routed_lora(**given)
        assert torch.equal(routed_lora(**given, out=torch.empty_like(y) if base is None else base), y)


def test_the_stacked_form_makes_nothing_as_wide_as_the_result():
    base, x, a, b, gates = (tensor.detach() for tensor in problem(64, 8, 64, 3, 2, dtype=FULL))
    for target in (base, torch.empty_like(base)):
        with Made() as made:
            routed_lora(x, base, a, b, 1.5, gates=gates, impl="stacked", out=target)
        assert made.tensors and not made.as_large_as(target)
    with Made() as made:
        routed_lora(x, base, a, b, 1.5, gates=gates, impl="stacked")
    assert made.as_large_as(base)


def test_gradients_are_refused_unless_none_can_be_wanted():
    given = operands()
    for name in ("x", "base", "a", "b", "weight"):
        leaf = given[name].clone().requires_grad_()
        with pytest.raises(UserError, match=f"{name} requires one; call without out="):
            routed_lora(**(given | {name: leaf}), out=torch.empty(9, 5))
        with torch.no_grad():
            routed_lora(**(given | {name: leaf}), out=torch.empty(9, 5))
    with pytest.raises(UserError, match="but out requires one"):
        routed_lora(**given, out=torch.empty(9, 5, requires_grad=True))
    with torch.inference_mode():
        routed_lora(**given, out=torch.empty(9, 5))


@pytest.mark.parametrize("out, words", [
    (torch.empty(9, 4), "out has the shape [9, 4], expected [9, 5]"),
    (torch.empty(9, 5, dtype=torch.float64), "out is torch.float64, but the result torch.float32"),
    (torch.empty(9, 5, device="meta"), "out is on meta"),
    (torch.empty(5, 9).t(), "the rows of out are contiguous"),
    (torch.empty(1, 5).expand(9, 5), "the rows of out are contiguous"),
    (torch.empty(50).as_strided((9, 5), (4, 1)), "the rows of out are contiguous"),
])  # fmt: skip
def test_a_tensor_that_does_not_fit_is_refused(out, words):
    with pytest.raises(UserError) as error:
        routed_lora(**operands(), out=out)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_overlap_is_refused():
    given, memory = operands(), torch.zeros(200)
    for name, shape in (("x", (9, 6)), ("base", (9, 5)), ("a", (4, 2, 6)), ("b", (5, 4, 2))):
        view = memory[:120][: given[name].numel()].view(shape)
        with pytest.raises(UserError, match=f"out overlaps with {name}; give a tensor of its own"):
            routed_lora(**(given | {name: view}), out=memory[5:50].view(9, 5))
    y = routed_lora(**given)
    memory[:45] = given["base"].flatten()
    base, same = memory[:45].view(9, 5), memory[:45].view(9, 5)
    assert torch.equal(routed_lora(**(given | {"base": base}), out=same), y) and torch.equal(base, y)


def test_compiles_without_a_break():
    given = operands()
    y = routed_lora(**given, impl="stacked")

    def run(base):
        return routed_lora(**(given | {"base": base}), impl="stacked", out=base) * 2

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(given["base"]), y * 2)
    torch.testing.assert_close(given["base"], y)
