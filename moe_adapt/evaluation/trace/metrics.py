"""The metrics of a trace, site by site, their means over sites, and the divergence between groups.

Every value is a function of the recorded decisions, whatever the batches were. JSON types; None where a
metric has no value (no probabilities kept, no sample as long as a window, a group without tokens).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from moe_adapt.evaluation.balance import dead_experts, expert_importance, expert_load, max_violation
from moe_adapt.evaluation.divergence import group_divergence, group_profiles
from moe_adapt.evaluation.entropy import router_entropy
from moe_adapt.evaluation.locality import cache_hit_rate, segment_routing_performance, srp_floor
from moe_adapt.evaluation.trace.record import RoutingTrace

__all__ = ["SCALARS", "site_metrics", "trace_metrics"]

#: Scalar metrics of a site, in the order of tables.
SCALARS = ("mean_k", "entropy", "load_max", "max_violation", "dead_experts", "group_js")

#: Tokens that the cache of SCH runs over: the simulation is sequential.
CACHE_TOKENS = 2048


def site_metrics(trace: RoutingTrace, site: str, windows: Sequence[int] = (4, 16, 64)) -> dict[str, Any]:
    """Return the metrics of one site.

    Args:
        trace: The trace.
        site: Path of the site.
        windows: Tokens per window of the local consistency (`moe_adapt.evaluation.locality`).

    Returns:
        ``experts``, ``tokens``, ``load`` and ``importance`` [E], ``k_share`` (share of tokens that use 0, 1,
        ..., E experts, [E + 1]), the scalars of `SCALARS`, ``srp`` and ``srp_floor`` by window, and with
        groups ``group_load`` [G, E] and ``group_divergence`` [G, G].
    """
    record = trace.sites[site]
    selected = record.selected
    per_token = selected.sum(dim=-1)
    load = expert_load(selected)
    samples = trace.table(site).sample
    metrics: dict[str, Any] = {
        "experts": record.num_experts,
        "tokens": record.tokens,
        "load": load.tolist(),
        "importance": expert_importance(record.gates).tolist(),
        "k_share": _shares(per_token, record.num_experts + 1),
        "mean_k": _number(per_token.to(torch.float64).mean()),
        "entropy": None if record.probs is None else _number(router_entropy(record.probs).double().mean()),
        "load_max": float(load.max()),
        "max_violation": max_violation(load),
        "dead_experts": dead_experts(load),
        "srp": {str(m): _number(segment_routing_performance(selected, m, samples)) for m in windows},
        "srp_floor": {str(m): _number(srp_floor(selected, m, samples)) for m in windows},
        "group_js": None,
    }
    groups = trace.token_groups(site)
    if groups is not None:
        count = len(trace.group_names)
        values = selected.float() if record.probs is None else record.probs.float()
        metrics["group_load"] = _normalized(group_profiles(selected.float(), groups, count))
        matrix = group_divergence(group_profiles(values, groups, count))
        metrics["group_divergence"] = [[_number(value) for value in row] for row in matrix]
        metrics["group_js"] = _mean_pair(matrix)
    return metrics


def trace_metrics(
    trace: RoutingTrace,
    windows: Sequence[int] = (4, 16, 64),
    advance: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Return the metrics of a trace.

    Args:
        trace: The trace.
        windows: See `site_metrics`.
        advance: Called after each site, for a progress bar.

    Returns:
        ``meta``, ``tokens``, ``samples``, ``group_names``, ``mean`` (of the scalars over sites) and
        ``sites``, which have ``cache_size`` and ``sch`` by window beside what `site_metrics` gives.
    """
    sites = {}
    for site in trace.sites:
        sites[site] = site_metrics(trace, site, windows)
        advance()
    for site, rates in _segment_hit_rates(trace, windows).items():
        sites[site] |= rates
    return {
        "meta": dict(trace.meta),
        "tokens": trace.num_tokens,
        "samples": len(trace.samples),
        "group_names": list(trace.group_names),
        "mean": {name: mean_of(sites.values(), name) for name in SCALARS},
        "sites": sites,
    }


def mean_of(rows: Any, name: str) -> float | None:
    """Return the mean of a value over the rows that have it, or None."""
    values = [row[name] for row in rows if row.get(name) is not None]
    return sum(values) / len(values) if values else None


def _segment_hit_rates(trace: RoutingTrace, windows: Sequence[int]) -> dict[str, dict[str, Any]]:
    """Return SCH of every site, for caches of twice the experts of a token; like sites run at once."""
    alike: dict[tuple[int, int, int], list[str]] = {}
    for name, site in trace.sites.items():
        mean_k = float(site.selected.sum() / max(site.tokens, 1))
        size = min(max(1, round(2 * mean_k)), site.num_experts)
        alike.setdefault((site.table, site.num_experts, size), []).append(name)
    found: dict[str, dict[str, Any]] = {}
    for (_, _, size), names in alike.items():
        selected = torch.stack([trace.sites[name].selected[:CACHE_TOKENS] for name in names])
        rates = {m: cache_hit_rate(selected, size, "segment", m) for m in windows}
        for row, name in enumerate(names):
            by_window = {str(m): _number(rates[m][row]) for m in windows}
            found[name] = {"cache_size": size, "sch": by_window}
    return found


def _number(value: Any) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None


def _shares(values: Tensor, count: int) -> list[float]:
    return (torch.bincount(values, minlength=count) / max(len(values), 1)).tolist()


def _normalized(profiles: Tensor) -> list[list[float]]:
    return (profiles / profiles.sum(dim=-1, keepdim=True).clamp(min=1e-12)).tolist()


def _mean_pair(matrix: Tensor) -> float | None:
    """Return the mean of a symmetric matrix over its pairs of groups with tokens."""
    pairs = matrix[torch.triu(torch.ones_like(matrix), diagonal=1).bool()]
    pairs = pairs[~pairs.isnan()]
    return float(pairs.mean()) if len(pairs) else None
