r"""FiLM experts: one LoRA, and a scale and a shift of its hidden vector per expert.

An expert of its own costs `r (d + o)` numbers. Where tasks are many and alike, most of that is the same for
all. Here `A` and `B` are shared, and an expert is `2 r` numbers, `\gamma_e` and `\beta_e`:

$$y_e = s\,B(\gamma_e \odot A x + \beta_e), \qquad
  y = W x + s\,B\Bigl(\bigl(\sum_e g_e \gamma_e\bigr) \odot A x + \sum_e g_e \beta_e\Bigr)$$

The sum over experts is two products of gates with [E, r] tables, so that the cost does not grow with the
number of experts. With one expert, `\gamma = 1` and `\beta = 0` this is PEFT's LoRA bit for bit.

Departures: the paper modulates the output of a shared block by networks of that output; an adapter's experts
are small enough as constants. `\gamma` starts at 1 plus noise (`spread`), since equal experts would get equal
gradients and the router none; a single expert starts at 1 exactly.

Reference: Zhang et al., "Efficient Deweather Mixture-of-Experts with Uncertainty-aware Feature-wise Linear
Modulation" (MoFME), AAAI 2024, arXiv 2312.16610.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from moe_adapt.errors import UserError
from moe_adapt.experts.bank import ExpertBank
from moe_adapt.experts.kinds import BANKS, BankKind
from moe_adapt.experts.rank_space import RankSpaceBank

__all__ = ["FilmBank", "FilmKind"]


@dataclass(frozen=True, eq=False, kw_only=True)
class FilmBank(RankSpaceBank):
    """A shared LoRA with a scale and a shift per expert.

    Attributes:
        gamma: Scales of the hidden vector, [E, r].
        beta: Shifts of the hidden vector, [E, r]; None for none.
    """

    gamma: Tensor
    beta: Tensor | None = None

    @property
    def num_experts(self) -> int:
        """Number of experts `E`."""
        return len(self.gamma)

    def mix(self, hidden: Tensor, gates: Tensor) -> Tensor:
        """Return the hidden vector, scaled and shifted by the mean of the experts, [..., r]."""
        gates = gates.to(hidden.dtype)
        mixed = hidden * (gates @ self.gamma.to(hidden.dtype))
        if self.beta is None:
            return mixed
        return mixed + gates @ self.beta.to(hidden.dtype)

    @property
    def no_matrix(self) -> str:
        """Why an expert is no change of weight: its shift does not depend on the input."""
        if self.beta is None:
            return ""
        return "FiLM experts with a shift add a constant beside their change of weight (bank option shift)"

    def own_factors(self) -> ExpertBank:
        """Return LoRA experts, each with its scale in its `A`; see `RankSpaceBank`."""
        if self.beta is not None:
            return super().own_factors()
        down = self.gamma.to(self.a.dtype).unsqueeze(-1) * self.a
        return ExpertBank(down, self.b.expand(-1, self.num_experts, -1), self.scale)


@BANKS.register("film")
class FilmKind(BankKind):
    """One LoRA for all experts; an expert scales and shifts its hidden vector.

    Args:
        shift: Whether experts have a shift. Without one an expert is a LoRA that can be exported and merged.
        spread: Standard deviation of the scales at the start, around 1. Higher: experts differ more from the
            start.

    Raises:
        UserError: If `spread` is negative.
    """

    reference = "MoFME, Zhang et al. 2024, arXiv 2312.16610"
    shares_factors = True

    def __init__(self, shift: bool = True, spread: float = 0.5) -> None:
        if spread < 0:
            raise UserError(f"the spread of FiLM's scales is not negative, got {spread}.")
        self.shift, self.spread = shift, spread

    def expert_tensors(self, num_experts: int, rank: int) -> dict[str, Tensor]:
        """Return the scales around 1 and the shifts 0, [E, r] each."""
        gamma = torch.ones(num_experts, rank)
        if num_experts > 1:
            gamma += self.spread * torch.randn(num_experts, rank)
        return {"gamma": gamma} | ({"beta": torch.zeros(num_experts, rank)} if self.shift else {})

    def bank(self, factors: ExpertBank, tensors: Mapping[str, Tensor]) -> FilmBank:
        """Return the bank of shared factors, scales and shifts."""
        return FilmBank(
            a=factors.a, b=factors.b, scale=factors.scale, gamma=tensors["gamma"], beta=tensors.get("beta")
        )
