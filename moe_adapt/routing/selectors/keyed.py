r"""Keyed selector: the expert of a sample's own key, and one shared by all; the router has no say.

Sample `b` of domain `d_b` gets, at every layer,

$$y = W x + s B_{d_b} A_{d_b} x + s B_E A_E x,$$

the last expert being the shared one if there is one. A sample without a key (domain -1, or no `domain_ids`)
gets the shared expert alone, and without a shared one the base. In training and at test alike: what a
customer's key says is known, and nothing has to guess it.
"""

import torch
from torch.nn import functional as F

from moe_adapt.errors import UserError
from moe_adapt.routing.base import SELECTORS, Logits, RoutingDecision, Selector
from moe_adapt.routing.context import RouteContext

__all__ = ["KeyedSelector"]


@SELECTORS.register("keyed")
class KeyedSelector(Selector):
    """Selects by `domain_ids`.

    Args:
        shared: Whether the last expert is for all samples.
    """

    reference = "no paper: an expert for every known key"
    unit_gate_for_one_expert = False

    def __init__(self, shared: bool = True) -> None:
        super().__init__()
        self.shared = shared

    def check(self, num_experts: int) -> None:
        """Raise `UserError` if there is no expert for any key."""
        if num_experts <= self.shared:
            raise UserError(
                f"{num_experts} experts leave none for a key beside the shared one; set num_experts to the "
                "number of keys and one more."
            )

    def slots(self, num_experts: int) -> int:
        """Return 2, or 1 without a shared expert."""
        return min(1 + self.shared, num_experts)

    def forward(self, logits: Logits, ctx: RouteContext) -> RoutingDecision:
        """Return gates of one for the sample's own expert and the shared one, [N, E].

        Raises:
            UserError: If a domain has no expert.
        """
        tokens, experts = logits.weight.shape
        keys = experts - self.shared
        selected = torch.zeros_like(logits.weight, dtype=torch.bool)
        domains = ctx.flat_domain_ids(tokens)
        if domains is not None and len(domains):
            if int(domains.max()) >= keys:
                raise UserError(
                    f"domain {int(domains.max())} has no expert: {ctx.site[1]!r} has {keys} for keys; set "
                    "num_experts to the number of keys and one more for the shared expert."
                )
            own = F.one_hot(domains.clamp(min=0), experts).bool()
            selected |= own & (domains >= 0).unsqueeze(-1)
            ctx.decided_by_label.add(ctx.site)
        if self.shared:
            selected[:, -1] = True
        return RoutingDecision(gates=selected.to(logits.weight.dtype), selected=selected)
