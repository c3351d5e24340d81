r"""One LoRA in place of a routed mixture: by concatenation with constant gates, or by a truncated SVD.

With gates `w` that are the same for every token the mixture is one matrix of rank `R = E r`,

$$\Delta W = s \sum_e w_e B_e A_e = s\, [w_1 B_1 \cdots w_E B_E]\, [A_1; \ldots; A_E],$$

so stacking the factors is exact. The weights stay on the `B` side: their square roots on both sides would
lose the sign of a negative gate. A smaller rank takes the largest singular values of `\Delta W`, from the QR
decompositions of the two stacks and the SVD of an `R x R` matrix; `\Delta W` itself [o, d] is never formed.
Averaging `A` and `B` one by one is no alternative: the factors of one expert are defined only up to an
invertible `r x r` matrix.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from moe_adapt.errors import UserError
from moe_adapt.experts import ExpertBank

__all__ = ["LowRank", "concatenate", "single_expert", "truncate"]


@dataclass(frozen=True)
class LowRank:
    """One LoRA of one layer, `scale * b @ a`.

    Attributes:
        a: Down-projection, [R, d].
        b: Up-projection, [o, R].
        scale: The LoRA scale `s`.
    """

    a: Tensor
    b: Tensor
    scale: float

    @property
    def rank(self) -> int:
        """The rank `R`."""
        return self.a.shape[0]

    def delta_weight(self) -> Tensor:
        """Return the change of weight, [o, d]."""
        return (self.b @ self.a) * self.scale


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

    >>> a, b = torch.ones(2, 1, 3), torch.ones(4, 2, 1)
    >>> concatenate(ExpertBank(a, b, scale=2.0), torch.tensor([0.25, 0.0])).delta_weight()[0]
    tensor([0.5000, 0.5000, 0.5000])
    """
    used = [expert for expert, gate in enumerate(gates.tolist()) if gate != 0]
    if not used:
        raise UserError("no token of the calibration data used an expert; calibrate with other rows.")
    positions = [bank.position(expert) for expert in used]
    a, b = bank.a.detach().cpu()[positions], bank.b.detach().cpu()[:, positions]
    weighted = b * gates.detach().cpu()[used].to(b.dtype)[None, :, None]
    return LowRank(a.flatten(0, 1).contiguous(), weighted.flatten(1, 2).contiguous(), bank.scale)


def truncate(lora: LowRank, rank: int) -> tuple[LowRank, float]:
    """Return the nearest LoRA of a smaller rank, and its relative error in the Frobenius norm.

    Both factors get the square roots of the singular values; the largest entry of every column of `b` is
    positive, so that equal matrices give equal factors.

    Args:
        lora: The LoRA, with `R` at most `rank` it is returned as it is.
        rank: The rank to keep.

    >>> truncate(LowRank(torch.eye(2), torch.diag(torch.tensor([4.0, 3.0])), 1.0), 1)[1]
    0.6
    """
    if lora.rank <= rank:
        return lora, 0.0
    b_basis, b_core = torch.linalg.qr(lora.b.double())
    a_basis, a_core = torch.linalg.qr(lora.a.double().t())
    left, values, right = torch.linalg.svd(b_core @ a_core.t(), full_matrices=False)
    b = b_basis @ left[:, :rank] * values[:rank].sqrt()
    a = (a_basis @ right[:rank].t() * values[:rank].sqrt()).t()
    largest = b.gather(0, b.abs().argmax(dim=0, keepdim=True))
    sign = torch.where(largest < 0, -1.0, 1.0).to(b.dtype)
    norm = values.norm()
    error = float(values[rank:].norm() / norm) if norm > 0 else 0.0
    kept = LowRank((a * sign.t()).to(lora.a.dtype).contiguous(), (b * sign).to(lora.b.dtype), lora.scale)
    return kept, error
