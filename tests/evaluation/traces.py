"""Small traces made by hand."""

import torch

from moe_adapt.evaluation.trace.record import RoutingTrace, SiteTrace, TokenTable, pack_bits

SITES = ("model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj")


def site(logits: torch.Tensor, k: int = 2, table: int = 0, probs: bool = True) -> SiteTrace:
    """Return the top-k decisions for logits [N, E]."""
    p = logits.softmax(dim=-1)
    selected = torch.zeros_like(p, dtype=torch.bool).scatter(1, logits.topk(k).indices, True)
    return SiteTrace(
        num_experts=p.shape[1],
        table=table,
        packed=pack_bits(selected),
        weights=p[selected].half(),
        first=logits.argmax(dim=-1).to(torch.int16),
        probs=p.half() if probs else None,
    )


def trace(seed: int = 0, experts: int = 5, grouped: bool = True, probs: bool = True) -> RoutingTrace:
    """Return a trace of 3 samples with 4, 6 and 2 tokens at two sites, and a pooled site."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([4, 6, 2])
    table = TokenTable(
        sample=torch.arange(3).repeat_interleave(lengths).int(),
        position=torch.cat([torch.arange(n) for n in lengths]).int(),
        ids=torch.arange(12).int(),
    )
    pooled = TokenTable(sample=torch.arange(3).int(), position=torch.zeros(3).int())
    sites = {name: site(torch.randn(12, experts, generator=generator), probs=probs) for name in SITES}
    sites["pooler"] = site(torch.randn(3, 3, generator=generator), k=1, table=1, probs=probs)
    return RoutingTrace(
        sites=sites,
        tables=[table, pooled],
        samples=torch.tensor([11, 22, 33]),
        groups=torch.tensor([0, 1, 0]) if grouped else None,
        group_names=["warm", "cold"] if grouped else [],
        meta={"run": "toy"},
    )
