r"""A growing bank of bottleneck experts, and two ways to run it: one row per sample, or the selected experts.

An expert is an adapter with its own layer norm and a scale per channel,

$$E_e(x) = s_e \odot \big(B_e\, \mathrm{relu}(A_e\, \mathrm{LN}_e(x) + a_e) + b_e\big)$$

The normalised input is the same for all experts, so gain, shift and scale fold into the two products:
`A' = A diag(gamma)`, `a' = A beta + a`, `B' = diag(s) B`, `b' = s b`, exactly. What remains is the LoRA bank
of this package with a hidden bias and a ReLU, and the same stacked layout [E, r, d].
"""

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn import init

from moe_adapt.learners.care.growing import Growing

__all__ = ["BottleneckBank", "Folded", "linear_rows", "standardize"]

#: Added to the variance, as in PyTorch's layer norm.
EPS = 1e-5


def linear_rows(*shape: int) -> Tensor:
    """Return weights [..., out, in] in the initialisation of `torch.nn.Linear`."""
    weight = torch.empty(shape)
    bound = shape[-1] ** -0.5
    return init.uniform_(weight, -bound, bound)


def standardize(x: Tensor) -> Tensor:
    """Return x [..., d] with mean 0 and variance 1: a layer norm without gain and shift."""
    return torch.nn.functional.layer_norm(x, x.shape[-1:], eps=EPS)


class Folded(NamedTuple):
    """Experts with norm and scale folded in.

    Attributes:
        down: [E, r, d].
        down_bias: [E, r].
        up: [E, r, d], transposed so that experts can be gathered row by row.
        up_bias: [E, d].
    """

    down: Tensor
    down_bias: Tensor
    up: Tensor
    up_bias: Tensor

    def first(self, count: int) -> "Folded":
        """Return the first experts."""
        return Folded(*(tensor[:count] for tensor in self))

    def rows(self, row: Tensor, keep: Tensor | None = None) -> Tensor:
        """Return every expert's output for one vector per sample, [B, E, d].

        Args:
            row: Normalised vectors, [B, d].
            keep: Dropout masks of the hidden units, [B, E, r].
        """
        experts, rank, width = self.down.shape
        hidden = row @ self.down.reshape(experts * rank, width).T + self.down_bias.reshape(-1)
        hidden = hidden.relu().view(-1, experts, rank)
        if keep is not None:
            hidden = hidden * keep
        return torch.bmm(hidden.transpose(0, 1), self.up).transpose(0, 1) + self.up_bias

    def rows_of(self, row: Tensor, index: Tensor, keep: Tensor | None = None) -> Tensor:
        """Return the outputs of some experts for one vector per sample, [B, M, d].

        Args:
            row: Normalised vectors, [B, d].
            index: Which experts, [B, M].
            keep: Dropout masks of the hidden units of all experts, [B, E, r].
        """
        hidden = (torch.einsum("bd,bmrd->bmr", row, self.down[index]) + self.down_bias[index]).relu()
        if keep is not None:
            hidden = hidden * keep.gather(1, index.unsqueeze(-1).expand(-1, -1, keep.shape[-1]))
        return torch.einsum("bmr,bmrd->bmd", hidden, self.up[index]) + self.up_bias[index]

    def mix(self, x: Tensor, gates: Tensor, active: int, keep: Tensor | None = None) -> Tensor:
        """Return the gated sum of the experts for all tokens, [B, S, d].

        Args:
            x: Normalised tokens, [B, S, d].
            gates: Weight of each expert for each sample, [B, E].
            active: The most experts that have a weight in one sample; only so many are run.
            keep: Dropout masks of the hidden units of the experts that run, [B, S, U, r], in the order of
                `active_experts`.
        """
        experts, rank, width = self.down.shape
        if active >= experts:
            hidden = x @ self.down.reshape(-1, width).T + self.down_bias.reshape(-1)
            weights, up, bias = gates, self.up.reshape(-1, width), gates @ self.up_bias
        else:
            index = active_experts(gates, active)
            down = self.down[index].flatten(1, 2)
            hidden = torch.baddbmm(self.down_bias[index].flatten(1).unsqueeze(1), x, down.transpose(1, 2))
            weights, up = gates.gather(1, index), self.up[index].flatten(1, 2)
            bias = (weights.unsqueeze(-1) * self.up_bias[index]).sum(dim=1)
        hidden = hidden.relu() * weights.repeat_interleave(rank, dim=1).unsqueeze(1)
        if keep is not None:
            hidden = hidden * keep.flatten(2)
        return hidden @ up + bias.unsqueeze(1)


def active_experts(gates: Tensor, active: int) -> Tensor:
    """Return the experts that run for each sample, [B, min(active, E)]: those with a weight come first."""
    if active >= gates.shape[1]:
        return torch.arange(gates.shape[1], device=gates.device).expand(len(gates), -1)
    return gates.topk(active, dim=1).indices


class BottleneckBank(Growing):
    """Bottleneck experts of one block: frozen ones, and one that is being learned.

    Args:
        width: Features per token, `d`.
        rank: Hidden units of an expert, `r`.
        layer_norm: Whether experts have a layer norm of their own.
    """

    tensors: ClassVar[tuple[str, ...]] = ("down", "down_bias", "up", "up_bias", "scale", "gain", "shift")

    def __init__(self, width: int, rank: int, layer_norm: bool = True) -> None:
        self.width, self.rank, self.layer_norm = width, rank, layer_norm
        shapes: dict[str, tuple[int, ...]] = {
            "down": (rank, width),
            "down_bias": (rank,),
            "up": (width, rank),
            "up_bias": (width,),
            "scale": (width,),
            "gain": (width,),
            "shift": (width,),
        }
        if not layer_norm:
            self.tensors = self.tensors[:-2]  # type: ignore[misc]
        super().__init__(shapes)
        self._folded: Folded | None = None

    @property
    def num_experts(self) -> int:
        """Number of experts, the newest included."""
        return len(self.frozen("down")) + (self.new("down") is not None)

    def fresh(self) -> dict[str, Tensor]:
        """Return an expert that outputs zero: random products, zero biases and scale."""
        zero, one = torch.zeros(1, self.width), torch.ones(1, self.width)
        return {
            "down": linear_rows(1, self.rank, self.width),
            "down_bias": torch.zeros(1, self.rank),
            "up": linear_rows(1, self.width, self.rank),
            "up_bias": zero,
            "scale": zero.clone(),
            "gain": one,
            "shift": zero.clone(),
        }

    def mean(self, count: int) -> dict[str, Tensor]:
        """Return an expert whose tensors are the mean of those of the first `count` experts."""
        return {
            name: self.whole(name)[:count].detach().mean(dim=0, keepdim=True).clone() for name in self.tensors
        }

    def changed(self) -> None:
        """Forget the folded form of the frozen experts."""
        self._folded = None

    def normalized(self, x: Tensor) -> Tensor:
        """Return what the folded experts read, [..., d]."""
        return standardize(x) if self.layer_norm else x

    def folded(self) -> Folded:
        """Return all experts with norm and scale folded in; that of frozen experts is kept."""
        if self._folded is None:
            with torch.inference_mode(False), torch.no_grad():
                self._folded = self._fold({name: self.frozen(name) for name in self.tensors})
        if self.new("down") is None:
            return self._folded
        newest = self._fold({name: getattr(self, f"new_{name}") for name in self.tensors})
        return Folded(*(torch.cat(pair) for pair in zip(self._folded, newest, strict=True)))

    def _fold(self, rows: dict[str, Tensor]) -> Folded:
        down, down_bias = rows["down"], rows["down_bias"]
        if self.layer_norm:
            down_bias = down_bias + torch.einsum("erd,ed->er", down, rows["shift"])
            down = down * rows["gain"].unsqueeze(1)
        up = (rows["up"] * rows["scale"].unsqueeze(-1)).transpose(1, 2).contiguous()
        return Folded(down, down_bias, up, rows["scale"] * rows["up_bias"])
