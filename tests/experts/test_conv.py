"""Experts beside a convolution against the same experts on patches, written out."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from moe_adapt.experts import ExpertBank
from moe_adapt.experts.conv import ConvGeometry, add_conv_experts, is_supported_convolution
from moe_adapt.kernels import routed_lora

SHAPES = {
    "pointwise": dict(kernel_size=1),
    "three": dict(kernel_size=3, padding=1),
    "patch": dict(kernel_size=4, stride=4),
    "oblong": dict(kernel_size=(3, 1), stride=(2, 1), padding=(0, 2)),
    "dilated": dict(kernel_size=3, dilation=2, padding=2),
    "even_same": dict(kernel_size=2, padding="same"),
    "reflect": dict(kernel_size=3, padding=1, padding_mode="reflect"),
    "circular": dict(kernel_size=3, stride=2, padding=1, padding_mode="circular"),
}


def problem(options, same=False, dtype=torch.float64):
    torch.manual_seed(0)
    if same:
        layers = pytest.importorskip("timm.layers", reason="needs the extra vision (timm)")
        layer = layers.Conv2dSame(3, 5, **options)
    else:
        layer = nn.Conv2d(3, 5, **options)
    layer = layer.to(dtype)
    return layer, ConvGeometry.of(layer), torch.randn(2, 3, 9, 8, dtype=dtype)


@pytest.mark.parametrize("options", SHAPES.values(), ids=SHAPES)
def test_products_are_those_of_the_layer_itself(options):
    layer, geometry, x = problem(options)
    expected = layer(x) - layer.bias[:, None, None]
    rows = layer.weight.flatten(1)
    torch.testing.assert_close(geometry.down(x, rows), expected)
    patches = geometry.patches(x)
    torch.testing.assert_close(F.linear(patches, rows).transpose(1, 2), expected.flatten(2))
    torch.testing.assert_close(geometry.mean_patch(x), patches.mean(dim=1))


@pytest.mark.parametrize("kernel,stride", [(3, 2), (2, 1), (1, 1), (5, 3)])
def test_padding_by_the_size_of_the_input(kernel, stride):
    layer, geometry, x = problem(dict(kernel_size=kernel, stride=stride), same=True)
    expected = layer(x) - layer.bias[:, None, None]
    torch.testing.assert_close(geometry.down(x, layer.weight.flatten(1)), expected)
    torch.testing.assert_close(geometry.mean_patch(x), geometry.patches(x).mean(dim=1))


@pytest.mark.parametrize("order", [None, (2, 0, 1)])
def test_mixture_and_gradients_equal_those_on_patches(order):
    layer, geometry, x = problem(SHAPES["three"])
    base = layer(x).detach()
    a = torch.randn(3, 2, 27, dtype=x.dtype, requires_grad=True)
    b = torch.randn(5, 3, 2, dtype=x.dtype, requires_grad=True)
    gates = torch.rand(2, 3, 9, 8, dtype=x.dtype, requires_grad=True)
    x.requires_grad_()
    bank = ExpertBank(a, b, scale=0.5, order=order)
    ours = add_conv_experts(base, geometry.down(x, a.flatten(0, 1)), gates, bank)
    stored = gates if order is None else gates[:, list(order)]
    tokens = stored.permute(0, 2, 3, 1).reshape(-1, 3)
    flat = base.permute(0, 2, 3, 1).reshape(-1, 5)
    patches = geometry.patches(x).flatten(0, 1)
    reference = routed_lora(patches, flat, a, b, 0.5, gates=tokens, impl="reference")
    reference = reference.view(2, 9, 8, 5).permute(0, 3, 1, 2)
    torch.testing.assert_close(ours, reference)
    weight = torch.randn_like(ours)
    leaves = (x, a, b, gates)
    found = torch.autograd.grad((ours * weight).sum(), leaves)
    expected = torch.autograd.grad((reference * weight).sum(), leaves)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_shared_down_projection():
    _, geometry, x = problem(SHAPES["pointwise"])
    a, b = torch.randn(1, 2, 3, dtype=x.dtype), torch.randn(5, 3, 2, dtype=x.dtype)
    gates = torch.rand(2, 3, 1, 1, dtype=x.dtype)
    bank = ExpertBank(a, b, scale=1.0)
    base = torch.zeros(2, 5, 9, 8, dtype=x.dtype)
    ours = add_conv_experts(base, geometry.down(x, a.flatten(0, 1)), gates, bank)
    each = torch.stack([torch.einsum("or,rc,bchw->bohw", b[:, e], a[0], x) for e in range(3)], dim=1)
    torch.testing.assert_close(ours, (each * gates[:, :, None]).sum(dim=1))


def test_what_is_supported():
    assert is_supported_convolution(nn.Conv2d(4, 4, 3))
    assert not is_supported_convolution(nn.Conv2d(4, 4, 3, groups=4))
    assert not is_supported_convolution(nn.Linear(4, 4))
