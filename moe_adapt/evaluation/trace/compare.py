"""Compare two traces of the same tokens: how much routing moved from one checkpoint to another.

The tokens must be the same in the same order; batches and padding may differ. Experts are followed through
edits of the pool (`moe_adapt.evaluation.trace.lineage`); traces that do not say where experts come from are
compared by index, over the larger number of experts. Null experts count as one choice, "no expert".
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from moe_adapt.errors import UserError
from moe_adapt.evaluation.agreement import leak, permuted_overlap, set_overlap, set_stability, top1_agreement
from moe_adapt.evaluation.balance import expert_load
from moe_adapt.evaluation.divergence import jensen_shannon
from moe_adapt.evaluation.trace.lineage import align_sites
from moe_adapt.evaluation.trace.record import RoutingTrace, SiteTrace

__all__ = ["SiteComparison", "compare_traces"]


@dataclass(frozen=True)
class SiteComparison:
    """How the routing of one site differs between two traces.

    Attributes:
        top1: Share of tokens with the same first expert.
        overlap: Mean overlap of the selected sets.
        chance: Overlap of the first with the shuffled tokens of the second.
        stability: Share of tokens whose selected set is unchanged.
        js: Mean over tokens of the Jensen-Shannon divergence of the probabilities, in nats; None if one of
            the traces has none.
        load_js: Jensen-Shannon divergence of the loads, in nats.
        leak: Share of the second's gate mass on experts that the first does not have.
    """

    top1: float
    overlap: float
    chance: float
    stability: float
    js: float | None
    load_js: float
    leak: float


def compare_traces(before: RoutingTrace, after: RoutingTrace) -> dict[str, SiteComparison]:
    """Return the comparison of every site that both traces have.

    Args:
        before: The first trace.
        after: The second.

    Raises:
        UserError: If the traces have no common site, or are not of the same tokens.
    """
    if not torch.equal(before.samples, after.samples):
        shared = len(set(before.samples.tolist()) & set(after.samples.tolist()))
        raise UserError(
            f"the traces are of different samples ({len(before.samples)} and {len(after.samples)}, {shared} "
            "in common) or of another order; record both over the same data and the same number of rows."
        )
    common = [site for site in before.sites if site in after.sites]
    if not common:
        raise UserError("the traces have no site in common; they are of different models or adapters.")
    for site in common:
        if not before.table(site).same_tokens(after.table(site)):
            raise UserError(
                f"the traces have different tokens at {site}; record both with the same tokenizer and length."
            )
    return {site: _compare_site(before, after, site) for site in common}


def _compare_site(before: RoutingTrace, after: RoutingTrace, site: str) -> SiteComparison:
    a, b, known = align_sites(before.sites[site], after.sites[site])
    experts = max(a.num_experts, b.num_experts)
    first, second = _widen(a.selected, experts), _widen(b.selected, experts)
    js = None
    if a.probs is not None and b.probs is not None and a.tokens:
        divergence = jensen_shannon(_distribution(a, a.probs, experts), _distribution(b, b.probs, experts))
        js = float(divergence.double().mean())
    return SiteComparison(
        top1=top1_agreement(a.first, b.first),
        overlap=set_overlap(first, second),
        chance=permuted_overlap(first, second),
        stability=set_stability(first, second),
        js=js,
        load_js=float(jensen_shannon(expert_load(first), expert_load(second))),
        leak=leak(b.gates, known),
    )


def _widen(values: Tensor, experts: int) -> Tensor:
    return F.pad(values, (0, experts - values.shape[1]))


def _distribution(site: SiteTrace, probs: Tensor, experts: int) -> Tensor:
    """Return stored probabilities as distributions over the experts and "no expert", [N, experts + 1].

    Rounding to float16 left their sums near one. Null experts are interchangeable.
    """
    true, null = probs.to(torch.float64).split([site.num_experts, site.nulls], dim=1)
    wide = torch.cat([_widen(true, experts), null.sum(dim=1, keepdim=True)], dim=1)
    return wide / wide.sum(dim=-1, keepdim=True)
