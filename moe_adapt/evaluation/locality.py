r"""Local routing consistency: do neighbouring tokens use the same experts? Says whether caching experts pays.

**SRP(m)**, segment routing best performance. Over all windows of `m` tokens let $c_{we}$ count how often
window `w` activates expert `e`. One threshold `t` marks the pairs with $c_{we} \ge t$, as if each window
could use its marked experts only. With `H` the activations of marked pairs, `P = m` times the marked pairs
and `A` all activations,

$$\mathrm{SRP}(m) = \max_{0 \le t \le m} \frac{2 H}{P + A}$$

It is 1 for constant routing and at least $2\rho / (1 + \rho)$ with $\rho = K / E$. **SCH(m)**, segment cache
best hit rate: the hit rate of a cache that keeps the experts which the next `m` tokens use most, ties by
recency; beside it LRU, which knows the past only, and Belady's rule (the farthest next use goes), which no
cache of that size beats. A cache starts empty and is filled on demand.

Departure: windows of SRP stay within a sample; caches run through all samples, as requests one after another.

Reference:
    "Not All Models Suit Expert Offloading: On Local Routing Consistency of Mixture-of-Expert Models"
    (code: github.com/ljcleo/moe-lrc).
"""

from typing import Literal

import torch
from torch import Tensor

from moe_adapt.errors import UserError

__all__ = ["CachePolicy", "cache_hit_rate", "segment_routing_performance", "srp_floor"]

#: Which experts a cache keeps; see `cache_hit_rate`.
CachePolicy = Literal["segment", "lru", "belady"]


def segment_routing_performance(selected: Tensor, window: int, samples: Tensor | None = None) -> float:
    """Return SRP(window), in [0, 1]; NaN if no sample is as long as a window, or nothing was picked.

    Args:
        selected: Selection in the order of the tokens, bool [N, E].
        window: Tokens per window, `m`.
        samples: Sample of each token, [N], each sample's tokens together; None for a single sample.

    Raises:
        UserError: If the window is empty.

    >>> constant = torch.tensor([[True, False, False, False]]).expand(32, 4)
    >>> segment_routing_performance(constant, window=8)
    1.0
    """
    counts = _window_counts(selected, window, samples)
    pairs = torch.bincount(counts.flatten(), minlength=window + 1).to(torch.float64)
    activations = pairs * torch.arange(window + 1)
    if not bool(activations.sum() > 0):
        return float("nan")
    marked = pairs.flip(0).cumsum(0).flip(0)
    hits = activations.flip(0).cumsum(0).flip(0)
    return float((2 * hits / (window * marked + activations.sum())).max())


def srp_floor(selected: Tensor, window: int = 1, samples: Tensor | None = None) -> float:
    """Return `2 rho / (1 + rho)`, what SRP is at least; NaN without windows.

    `rho` is the share of experts that a token uses, averaged over the windows: where the number of experts
    varies, tokens at the ends of samples are in fewer windows and count less.

    Args:
        selected: Selection, bool [N, E].
        window: Tokens per window, `m`.
        samples: Sample of each token, [N], each sample's tokens together; None for a single sample.

    Raises:
        UserError: If the window is empty.

    >>> srp_floor(torch.tensor([[True, False, False]]))
    0.5
    """
    rho = float(_window_counts(selected, window, samples).to(torch.float64).mean() / window)
    return 2 * rho / (1 + rho)


def cache_hit_rate(selected: Tensor, size: int, policy: CachePolicy = "segment", window: int = 16) -> Tensor:
    """Return the share of activations that a cache of experts answers, [...]; NaN without activations.

    Args:
        selected: Selection in the order of the tokens, bool [..., N, E]; leading axes are separate caches.
        size: Experts that the cache holds.
        policy: What it keeps after each token, out of its content and the token's experts: ``segment`` those
            that the next `window` tokens use most (SCH), ``lru`` the latest used, ``belady`` those used next.
        window: Tokens that ``segment`` looks ahead, `m`.

    Raises:
        UserError: For a size below 1 or an unknown policy.

    >>> alternating = torch.eye(2, dtype=torch.bool).repeat(4, 1)
    >>> cache_hit_rate(alternating, size=1, policy="lru").item(), cache_hit_rate(alternating, size=2).item()
    (0.0, 0.75)
    """
    if size < 1:
        raise UserError(f"a cache holds at least one expert, got {size}.")
    *_, tokens, experts = selected.shape
    if policy == "segment":
        keep = _uses_ahead(selected, window) * (tokens + 1)
    elif policy == "belady":
        keep = -_next_use(selected) * (tokens + 1)
    elif policy == "lru":
        keep = torch.zeros_like(selected, dtype=torch.int64)
    else:
        raise UserError(f"there is no cache policy {policy!r}; choose segment, lru or belady.")
    index_order = torch.arange(experts - 1, -1, -1)
    never = torch.iinfo(torch.int64).min
    cached = torch.zeros_like(selected[..., 0, :])
    latest = torch.zeros_like(cached, dtype=torch.int64)
    hits = torch.zeros(selected.shape[:-2], dtype=torch.int64)
    for token in range(tokens):
        now = selected[..., token, :]
        hits += (now & cached).sum(dim=-1)
        latest = latest.masked_fill(now, token)
        candidates = now | cached
        score = ((keep[..., token, :] + latest) * experts + index_order).masked_fill(~candidates, never)
        kept = score.topk(min(size, experts), dim=-1).indices
        cached = torch.zeros_like(candidates).scatter(-1, kept, True) & candidates
    return hits / selected.sum(dim=(-2, -1))


def _window_counts(selected: Tensor, window: int, samples: Tensor | None) -> Tensor:
    """Return how often each expert is activated in each window within a sample, [windows, E]."""
    if window < 1:
        raise UserError(f"a window has at least one token, got {window}.")
    tokens = len(selected)
    if tokens < window:
        return torch.zeros(0, selected.shape[1], dtype=torch.int64)
    total = torch.nn.functional.pad(selected.to(torch.int64).cumsum(dim=0), (0, 0, 1, 0))
    counts = total[window:] - total[:-window]
    if samples is None:
        return counts
    return counts[samples[window - 1 :] == samples[: tokens - window + 1]]


def _uses_ahead(selected: Tensor, window: int) -> Tensor:
    """Return how often each expert is used in the `window` tokens after each token, [..., N, E]."""
    tokens = selected.shape[-2]
    total = torch.nn.functional.pad(selected.to(torch.int64).cumsum(dim=-2), (0, 0, 1, 0))
    start = torch.arange(1, tokens + 1)
    end = (start + window).clamp(max=tokens)
    return total[..., end, :] - total[..., start, :]


def _next_use(selected: Tensor) -> Tensor:
    """Return the token at which each expert is used next after each token, or N, [..., N, E]."""
    tokens = selected.shape[-2]
    when = torch.arange(tokens)[:, None].expand(selected.shape).masked_fill(~selected, tokens)
    soonest = when.flip(-2).cummin(dim=-2).values.flip(-2)
    return torch.nn.functional.pad(soonest[..., 1:, :], (0, 0, 0, 1), value=tokens)
