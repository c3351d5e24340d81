r"""Chain of Experts: the tokens of a site pass its experts several times, with a gate of their own each time.

Experts that see each other's results can do in two passes of `K` what one pass of `2 K` cannot. A LoRA on a
layer of `d` inputs and `o` outputs has no place for a second pass, since what comes out is no input. Its
hidden vector has: with a shared LoRA and experts `M_e` [r, r] in rank space,

$$h_0 = A x, \qquad h_{t+1} = h_t + \sum_e g_{t,e}\, M_e h_t, \qquad y = W x + s\,B h_T$$

The experts are the same in every pass. The first gate is the site's router on `x`; each later pass has rows
of its own for `h_t`, whose `k` best probabilities are the gates, not renormalised, as released. With one pass
this is a plain mixture of LoRAs `B M_e A` beside the LoRA `B A`. `M_e` starts at zero: at first the chain is
the LoRA alone.

Departures: rank space instead of the width of the model; losses on routing and records see the first pass.

Reference: Wang et al., "Chain-of-Experts: Unlocking the Communication Power of Mixture-of-Experts Models",
2025, arXiv 2506.18945.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from moe_adapt.errors import UserError
from moe_adapt.experts.bank import ExpertBank
from moe_adapt.experts.kinds import BANKS, BankKind
from moe_adapt.experts.rank_space import RankSpaceBank

__all__ = ["ChainBank", "ChainKind", "pass_gates"]


def pass_gates(hidden: Tensor, rows: Tensor, k: int) -> Tensor:
    """Return the `k` largest probabilities of the experts for hidden vectors, zero elsewhere, [..., E].

    Args:
        hidden: [..., r]; the product is in fp32 at least, under autocast too.
        rows: A row per expert, [E, r].
        k: Experts per token.

    >>> pass_gates(torch.tensor([1.0]), torch.tensor([[0.0], [0.0], [-9.0]]), 1)
    tensor([0.5000, 0.0000, 0.0000])
    """
    precise = torch.promote_types(hidden.dtype, torch.float32)
    with torch.autocast(hidden.device.type, enabled=False):
        probs = F.linear(hidden.to(precise), rows.to(precise)).softmax(dim=-1)
    if k >= len(rows):
        return probs
    best = probs.sort(dim=-1, descending=True, stable=True)
    return torch.zeros_like(probs).scatter(-1, best.indices[..., :k], best.values[..., :k])


@dataclass(frozen=True, eq=False, kw_only=True)
class ChainBank(RankSpaceBank):
    """A shared LoRA with experts in rank space and several passes.

    Attributes:
        core: The experts, [E, r, r].
        rows: Rows of the gates of all passes but the first, [T - 1, E, r]; None for one pass.
        k: Experts per token in these passes.
    """

    core: Tensor
    rows: Tensor | None = None
    k: int = 2

    @property
    def num_experts(self) -> int:
        """Number of experts `E`."""
        return len(self.core)

    def mix(self, hidden: Tensor, gates: Tensor) -> Tensor:
        """Return the hidden vector after all passes, [..., r]."""
        hidden = self._passed(hidden, gates)
        for rows in () if self.rows is None else self.rows.unbind(0):
            hidden = self._passed(hidden, pass_gates(hidden, rows, self.k))
        return hidden

    def _passed(self, hidden: Tensor, gates: Tensor) -> Tensor:
        outer = gates.to(hidden.dtype).unsqueeze(-1) * hidden.unsqueeze(-2)
        core = self.core.to(hidden.dtype).transpose(0, 1).flatten(1)
        return hidden + F.linear(outer.flatten(-2), core)

    @property
    def no_matrix(self) -> str:
        """Why an expert is no change of weight: what it does depends on the pass before it."""
        return "the experts of a chain work on the hidden vector of a LoRA that all of them share"


@BANKS.register("chain")
class ChainKind(BankKind):
    """One LoRA for all experts; tokens pass the experts, matrices in its rank space, several times.

    Args:
        passes: How often, `T`. Higher: more experts in a row, more time; experts stay the same.
        k: Experts per token in every pass but the first, where the selector says so.

    Raises:
        UserError: If an option is less than one.
    """

    reference = "Chain-of-Experts, Wang et al. 2025, arXiv 2506.18945"
    shares_factors = True

    def __init__(self, passes: int = 2, k: int = 2) -> None:
        for name, value in (("passes", passes), ("k", k)):
            if value < 1:
                raise UserError(f"{name} of the bank kind chain is at least 1, got {value}.")
        self.passes, self.k = passes, k

    def expert_tensors(self, num_experts: int, rank: int) -> dict[str, Tensor]:
        """Return experts that change nothing yet, [E, r, r]."""
        return {"core": torch.zeros(num_experts, rank, rank)}

    def router_tensors(self, num_experts: int, rank: int) -> dict[str, Tensor]:
        """Return the rows of the passes after the first, [T - 1, E, r], as linear layers start."""
        if self.passes == 1:
            return {}
        bound = rank**-0.5
        return {"rows": torch.empty(self.passes - 1, num_experts, rank).uniform_(-bound, bound)}

    def bank(self, factors: ExpertBank, tensors: Mapping[str, Tensor]) -> ChainBank:
        """Return the bank of shared factors, experts in rank space and rows."""
        return ChainBank(
            a=factors.a,
            b=factors.b,
            scale=factors.scale,
            core=tensors["core"],
            rows=tensors.get("rows"),
            k=self.k,
        )
