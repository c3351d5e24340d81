r"""Condenser selector: top-k, and some experts that every token uses, each with its own probability.

$$y = W x + s \sum_{i \in TopK} p_i B_i A_i x + s \sum_{j \in C} p_j B_j A_j x$$

`C`, the condensers, are chosen by the modifier `condense_bias`; before that this is top-k with the raw
probabilities as gates. Where paper and released code differ, the paper is the default:

| | paper (default) | released code |
|---|---|---|
| experts per token | `k`, condensers among them (`budget="replace"`) | `k + c` (`"add"`) |
| an expert in both sums | once (`dedup=True`) | twice |

Reference: "Preserving Long-Tailed Expert Information in Mixture-of-Experts Tuning", arXiv 2604.23036; the
paper works on MoE blocks, on LoRA experts it is our adaptation.
"""

from typing import Literal

import torch

from moe_adapt.errors import UserError
from moe_adapt.routing.base import SELECTORS, Logits, RoutingDecision, Selector
from moe_adapt.routing.context import RouteContext

__all__ = ["CondenserSelector"]


@SELECTORS.register("condenser")
class CondenserSelector(Selector):
    """Keeps the condensers and the best of the other experts.

    Args:
        k: Experts per token, `K`. Higher: more experts per token.
        budget: Whether condensers take places of the `k` or come on top.
        gate: Gate of a condenser: its probability, or one (the paper's earlier, ungated version).
        dedup: Whether the best are sought among the others only.
        renormalize: Whether gates sum to one.

    Raises:
        UserError: If an option is out of range.
    """

    reference = "condenser experts, arXiv 2604.23036"

    def __init__(
        self,
        k: int = 4,
        budget: Literal["replace", "add"] = "replace",
        gate: Literal["probability", "one"] = "probability",
        dedup: bool = True,
        renormalize: bool = False,
    ) -> None:
        super().__init__()
        if k < 1:
            raise UserError(f"the condenser selector keeps at least one expert, got k={k}.")
        if budget not in ("replace", "add"):
            raise UserError(f"the condensers' budget is 'replace' or 'add', got {budget!r}.")
        if gate not in ("probability", "one"):
            raise UserError(f"a condenser's gate is 'probability' or 'one', got {gate!r}.")
        self.k, self.budget, self.gate = k, budget, gate
        self.dedup, self.renormalize = dedup, renormalize

    def forward(self, logits: Logits, ctx: RouteContext) -> RoutingDecision:
        """Return gates that are zero outside the kept experts, [N, E]."""
        probs = logits.weight.softmax(dim=-1)
        experts = probs.shape[-1]
        if experts == 1:
            return RoutingDecision(torch.ones_like(probs), torch.ones_like(probs, dtype=torch.bool))
        forced = torch.zeros(experts, dtype=torch.bool, device=probs.device)
        if logits.forced is not None:
            forced = logits.forced
        rivals = logits.select.masked_fill(forced, -torch.inf) if self.dedup else logits.select
        order = rivals.sort(dim=-1, descending=True, stable=True).indices
        places = self.k - forced.sum() * (self.budget == "replace")
        taken = (torch.arange(experts, device=probs.device) < places).expand_as(order)
        best = torch.zeros_like(taken).scatter(-1, order, taken) & (rivals > -torch.inf)
        own = probs if self.gate == "probability" else torch.ones_like(probs)
        gates = probs * best + own * forced
        if self.renormalize:
            gates = gates / gates.sum(dim=-1, keepdim=True)
        return RoutingDecision(gates=gates, selected=best | forced)
