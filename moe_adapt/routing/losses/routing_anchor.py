r"""Routing anchor: protected tokens go on being routed as they were when training began.

$$L = \mathrm{KL}(p_{then} \,\|\, p_{now}), \qquad p_{then} = \mathrm{softmax}(R_0 x), \quad
p_{now} = \mathrm{softmax}(R x)$$

averaged over the unpadded tokens of the protected domains and over sites: distillation of the router into
itself. The experts and the routing of all other tokens stay free. `R_0`, the rows of a linear scorer, are
copied at the first training forward, saved with the adapter, and carried through edits of the pool; an expert
that an edit adds is held where it begins. `moe_adapt.tuner.anchor_routing` moves the anchor to where the
routers are now.

The paper stores the routing of its protected prompts before training. We keep the router instead of the
prompts, so `x` is the input of now: that experts in shallower layers change what deeper routers see is not
corrected. The learner ``routing_anchor`` stores inputs, for tasks whose data are gone.

Reference: arXiv 2509.22745, there against the routing of harmful prompts.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from moe_adapt.errors import UserError
from moe_adapt.routing.base import AUX_LOSSES, AuxLoss
from moe_adapt.routing.records import RecordGroup

__all__ = ["RoutingAnchorLoss", "anchor_divergence"]


def anchor_divergence(logits: Tensor, reference: Tensor) -> Tensor:
    """Return `KL(p_then || p_now)` of each token, in nats, [..., N].

    Args:
        logits: Router logits now, [..., N, E].
        reference: Probabilities then, [..., N, E].

    >>> anchor_divergence(torch.zeros(1, 2), torch.tensor([[0.5, 0.5]]))
    tensor([0.])
    """
    return F.kl_div(logits.log_softmax(-1), reference, reduction="none").sum(-1)


@AUX_LOSSES.register("routing_anchor")
class RoutingAnchorLoss(AuxLoss):
    """Divergence from the routing of the start, on protected tokens.

    Args:
        weight: Coefficient in the total loss. Higher: routing of protected tokens moves less.
        domains: Numbers of the protected domains (``domain_ids`` of the batch); None protects all tokens.

    Raises:
        UserError: If `domains` is empty.
    """

    reference = "arXiv 2509.22745, there on harmful prompts"

    needs_anchor = True

    def __init__(self, weight: float = 1.0, domains: list[int] | None = None) -> None:
        super().__init__(weight)
        if domains is not None and not domains:
            raise UserError("the routing anchor protects no domain; give their numbers, or null for all.")
        self.domains = domains

    def forward(self, groups: Sequence[RecordGroup]) -> Tensor:
        """Return the mean over protected tokens and sites; 0 where a batch has no such token.

        Raises:
            UserError: If no site has an anchor, or domains are protected but the batch has none.
        """
        anchored = [group for group in groups if group.anchor is not None]
        if not anchored:
            raise UserError("the routing anchor found no router to hold: its layers have no linear scorer.")
        parts = []
        for group in anchored:
            assert group.anchor is not None
            held = self._protected(group)
            divergence = anchor_divergence(group.scores, group.anchor.softmax(-1))
            parts.append(torch.where(held, divergence, 0).sum(-1) / held.sum().clamp(min=1))
        return torch.cat(parts).mean()

    def _protected(self, group: RecordGroup) -> Tensor:
        tokens = group.scores.shape[1]
        real = torch.ones(tokens, dtype=torch.bool, device=group.scores.device)
        if group.mask is not None:
            real = group.mask.to(real.device)
        if self.domains is None:
            return real
        if group.domains is None:
            raise UserError(
                "the routing anchor protects domains, but the model was called without domain_ids [B]; data "
                "modules take them from domain_column."
            )
        own = group.domains.to(real.device)
        return real & torch.isin(own, torch.tensor(self.domains, device=real.device))
