"""Routing metrics of one site: load, importance, entropy, experts per token."""

from dataclasses import dataclass

import torch
from torch import Tensor

from moe_adapt.evaluation.entropy import router_entropy

__all__ = ["RoutingStats", "routing_stats"]


@dataclass(frozen=True)
class RoutingStats:
    """How one site used its experts.

    Attributes:
        load: Share of the (token, slot) pairs that went to each expert, [E]; sums to one.
        importance: Mean gate of each expert over all tokens, [E].
        entropy: Mean Shannon entropy of the router's probabilities divided by `log E`; 1 is uniform.
        mean_k: Mean number of experts per token.
        dense_share: Share of tokens that use all experts.
        tokens: Number of unpadded tokens.
    """

    load: Tensor
    importance: Tensor
    entropy: float
    mean_k: float
    dense_share: float
    tokens: int

    @property
    def dead_experts(self) -> int:
        """Number of experts that no token used."""
        return int((self.load == 0).sum())


def routing_stats(
    logits: Tensor, gates: Tensor, selected: Tensor, mask: Tensor | None = None, nulls: int = 0
) -> RoutingStats:
    """Summarise the decisions of one site.

    Args:
        logits: Router logits, [N, E].
        gates: Gates, [N, E].
        selected: Selection, bool [N, E].
        mask: True for real tokens, bool [N].
        nulls: How many of the columns, the last ones, are null experts: they count in the entropy only.

    >>> eye = torch.eye(2)
    >>> routing_stats(logits=eye * 100, gates=eye, selected=eye.bool()).load
    tensor([0.5000, 0.5000])
    """
    if mask is not None:
        logits, gates, selected = logits[mask], gates[mask], selected[mask]
    tokens, columns = gates.shape
    experts = columns - nulls
    gates, selected = gates[:, :experts], selected[:, :experts]
    per_token = selected.sum(dim=-1)
    load = selected.sum(dim=0).to(torch.float32)
    some = max(tokens, 1)
    return RoutingStats(
        load=load / load.sum().clamp(min=1),
        importance=gates.sum(dim=0) / some,
        entropy=float(router_entropy(logits.softmax(dim=-1)).sum() / some),
        mean_k=float(per_token.sum() / some),
        dense_share=float((per_token == experts).sum() / some),
        tokens=tokens,
    )
