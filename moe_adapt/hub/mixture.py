r"""One LoRA in place of a routed mixture: by concatenation with constant gates, or by a truncated SVD.

With gates `w` that are the same for every token the mixture is one matrix of rank `R = E r`,

$$\Delta W = s \sum_e w_e B_e A_e = s\, [w_1 B_1 \cdots w_E B_E]\, [A_1; \ldots; A_E],$$

so stacking the factors is exact. The weights stay on the `B` side: their square roots on both sides would
lose the sign of a negative gate. A smaller rank takes the largest singular values
(`moe_adapt.experts.low_rank`).
"""

from dataclasses import dataclass, replace

import torch.nn.functional as F
from torch import Tensor

from moe_adapt.errors import UserError
from moe_adapt.experts import ExpertBank, low_rank, pad_rank
from moe_adapt.experts.conv import ConvGeometry

__all__ = ["LowRank", "concatenate", "single_expert", "truncate"]


@dataclass(frozen=True)
class LowRank:
    """One LoRA of one layer, `scale * b @ a`.

    Attributes:
        a: Down-projection, [R, d].
        b: Up-projection, [o, R].
        scale: The LoRA scale `s`.
        geometry: What a convolution reads at each position; None for a linear layer.
    """

    a: Tensor
    b: Tensor
    scale: float
    geometry: ConvGeometry | None = None

    @property
    def rank(self) -> int:
        """The rank `R`."""
        return self.a.shape[0]

    def delta_weight(self) -> Tensor:
        """Return the change of weight, [o, d]."""
        return (self.b @ self.a) * self.scale

    def folded(self, rank: int) -> "LowRank":
        """Return the same change at a larger rank, filled up with zeros, with scale one."""
        a, b = pad_rank(self.a, self.b * self.scale, rank)
        return LowRank(a, b, 1.0, self.geometry)

    def stock_factors(self) -> tuple[Tensor, Tensor]:
        """Return `A` and `B` as PEFT stores them; of a convolution [R, C, k_h, k_w] and [o, R, 1, 1]."""
        if self.geometry is None:
            return self.a, self.b
        shape = (self.geometry.channels, *self.geometry.kernel)
        return self.a.reshape(-1, *shape), self.b[:, :, None, None]

    def __call__(self, x: Tensor) -> Tensor:
        """Return what the LoRA adds to the layer's output for an input `x`."""
        if self.geometry is None:
            return F.linear(F.linear(x, self.a), self.b) * self.scale
        return F.conv2d(self.geometry.down(x, self.a), self.b[:, :, None, None]) * self.scale


def single_expert(bank: ExpertBank, expert: int) -> LowRank:
    """Return one expert of a bank, with gate 1.

    Args:
        bank: The experts.
        expert: The router's index of the expert.
    """
    position = bank.position(expert)
    return LowRank(
        bank.a[position].detach().cpu().clone(), bank.b[:, position].detach().cpu().clone(), bank.scale
    )


def concatenate(bank: ExpertBank, gates: Tensor) -> LowRank:
    """Return the mixture of a bank under constant gates, exactly; experts with gate 0 are left out.

    Args:
        bank: The experts.
        gates: Weight of each expert, [E], in the router's order.

    Raises:
        UserError: If no expert has a gate.

    >>> import torch
    >>> a, b = torch.ones(2, 1, 3), torch.ones(4, 2, 1)
    >>> concatenate(ExpertBank(a, b, scale=2.0), torch.tensor([0.25, 0.0])).delta_weight()[0]
    tensor([0.5000, 0.5000, 0.5000])
    """
    used = [expert for expert, gate in enumerate(gates.tolist()) if gate != 0]
    if not used:
        raise UserError("no token of the calibration data used an expert; calibrate with other rows.")
    positions = [bank.position(expert) for expert in used]
    a, b = bank.a.detach().cpu()[positions], bank.b.detach().cpu()[:, positions]
    return LowRank(*low_rank.concatenate(a, b, gates[used].tolist()), bank.scale)


def truncate(lora: LowRank, rank: int) -> tuple[LowRank, float]:
    """Return the nearest LoRA of a smaller rank, and its relative error in the Frobenius norm.

    Args:
        lora: The LoRA; if its rank is at most `rank`, it is returned as it is.
        rank: The rank to keep.

    >>> import torch
    >>> truncate(LowRank(torch.eye(2), torch.diag(torch.tensor([4.0, 3.0])), 1.0), 1)[1]
    0.6
    """
    if lora.rank <= rank:
        return lora, 0.0
    a, b, error = low_rank.truncate(lora.a, lora.b, rank)
    return replace(lora, a=a, b=b), error
