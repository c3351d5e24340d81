r"""A mixture of LoRA experts beside a convolution: one stacked LoRA whose hidden channels are gated.

A convolution is a linear layer on patches: at each position of its output it maps the `d = C k_h k_w`
values under the kernel to `o` channels. So an expert is what it is for a linear layer, `B_e A_e`, with
`A_e` [r, d] seen as a `k_h x k_w` convolution to `r` channels and `B_e` [o, r] as a `1 x 1` convolution.
All experts together are two convolutions, for any number of them and any routing rule:

$$h = A_{cat} * x, \qquad y = W * x + B_{cat} * \bigl(s\,(g \otimes 1_r) \odot h\bigr)$$

with gates `g` [B, E, H, W] per position, or [B, E, 1, 1] per image. No patch is ever written out for it.
Grouped convolutions have no such form: a map to `r` shared channels would mix what their groups keep apart.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_adapt.experts.bank import ExpertBank
from moe_adapt.experts.rank_space import RankSpaceBank

__all__ = ["ConvGeometry", "add_conv_experts", "is_supported_convolution"]


def is_supported_convolution(layer: nn.Module) -> bool:
    """Return whether a layer is a 2-D convolution without groups (timm's with "same" padding included)."""
    return isinstance(layer, nn.Conv2d) and layer.groups == 1


@dataclass(frozen=True)
class ConvGeometry:
    """Which input values a convolution reads at each position of its output.

    Attributes:
        channels: Input channels, `C`.
        kernel: Height and width of the kernel.
        stride: Vertical and horizontal stride.
        dilation: Vertical and horizontal dilation.
        pads: Zeros (or what `mode` says) at the left, right, top and bottom; None pads as TensorFlow's "same"
            does, by the size of the input.
        mode: How the border is filled, as `nn.Conv2d.padding_mode`.
    """

    channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    pads: tuple[int, ...] | None
    mode: str

    @classmethod
    def of(cls, layer: nn.Conv2d) -> "ConvGeometry":
        """Return the geometry of a convolution without groups."""
        dynamic = type(layer).__name__.endswith(("Same", "SameExport"))
        pads: Any = None if dynamic else tuple(layer._reversed_padding_repeated_twice)
        kernel, stride, dilation = (tuple(v) for v in (layer.kernel_size, layer.stride, layer.dilation))
        return cls(layer.in_channels, kernel, stride, dilation, pads, layer.padding_mode)  # type: ignore[arg-type]

    @property
    def readable(self) -> bool:
        """Whether PEFT's LoRA, which copies neither dilation nor padding mode, reads the same values."""
        return self.mode == "zeros" and self.dilation == (1, 1)

    def _pads(self, x: Tensor) -> tuple[int, ...]:
        if self.pads is not None:
            return self.pads
        pads: list[int] = []
        for size, kernel, stride, dilation in zip(
            x.shape[:-3:-1], self.kernel[::-1], self.stride[::-1], self.dilation[::-1], strict=True
        ):
            missing = max((math.ceil(size / stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
            pads += [missing // 2, missing - missing // 2]
        return tuple(pads)

    def padded(self, x: Tensor) -> Tensor:
        """Return the input [B, C, H, W] with its border."""
        pads = self._pads(x)
        if not any(pads):
            return x
        return F.pad(x, pads, "constant" if self.mode == "zeros" else self.mode)

    def down(self, x: Tensor, a: Tensor) -> Tensor:
        """Return the products of rows `a` [R, d] with every patch of `x` [B, C, H, W], [B, R, H', W']."""
        weight = a.reshape(len(a), self.channels, *self.kernel)
        pads = self._pads(x)
        if self.mode == "zeros" and pads[::2] == pads[1::2]:
            return F.conv2d(x, weight, None, self.stride, (pads[2], pads[0]), self.dilation)
        return F.conv2d(self.padded(x), weight, None, self.stride, 0, self.dilation)

    def patches(self, x: Tensor) -> Tensor:
        """Return every patch of `x` [B, C, H, W] as a vector, [B, H' W', d]."""
        columns = F.unfold(self.padded(x), self.kernel, self.dilation, 0, self.stride)
        return columns.transpose(1, 2)

    def mean_patch(self, x: Tensor) -> Tensor:
        """Return the mean patch of each image of `x` [B, C, H, W], [B, d], one kernel place at a time."""
        x = self.padded(x)
        (kh, kw), (sh, sw), (dh, dw) = self.kernel, self.stride, self.dilation
        height, width = x.shape[-2] - dh * (kh - 1), x.shape[-1] - dw * (kw - 1)
        places = [
            x[..., i * dh : i * dh + height : sh, j * dw : j * dw + width : sw].mean(dim=(-2, -1))
            for i in range(kh)
            for j in range(kw)
        ]
        return torch.stack(places, dim=-1).flatten(1)


def add_conv_experts(base: Tensor, hidden: Tensor, gates: Tensor, bank: ExpertBank) -> Tensor:
    """Return `base` plus the mixture of the experts.

    Args:
        base: Output of the frozen convolution, [B, o, H, W].
        hidden: The experts' hidden channels in storage order, [B, E r, H, W]; [B, r, H, W] if they share `A`.
        gates: Weight of each expert in the router's order, [B, E, H, W] or [B, E, 1, 1].
        bank: The experts.
    """
    up = bank.b.flatten(1)[:, :, None, None]
    gates = gates.to(hidden.dtype)
    if isinstance(bank, RankSpaceBank):
        places = gates.expand(-1, -1, *hidden.shape[-2:]).movedim(1, -1)
        return base + F.conv2d(bank.mix(hidden.movedim(1, -1), places).movedim(-1, 1), up) * bank.scale
    if bank.num_experts == 1:  # PEFT's order of operations, so that one expert is PEFT's LoRA bit for bit
        return base + F.conv2d(hidden, up) * bank.scale * gates
    if bank.order is not None:
        gates = gates[:, list(bank.order)]
    batch, _, height, width = hidden.shape
    own = hidden.view(batch, -1, bank.b.shape[2], height, width)
    scaled = own * (gates * bank.scale).unsqueeze(2)
    return base + F.conv2d(scaled.flatten(1, 2), up)
