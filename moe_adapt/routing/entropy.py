r"""Entropies of routing distributions, normalised to 1 for the uniform one and 0 for a single expert.

Tsallis entropy of order `q` (nats for `q = 1`, where it is Shannon's):

$$S_q(p) = \frac{1 - \sum_i p_i^q}{q - 1}, \qquad S_1(p) = -\sum_i p_i \log p_i$$

Rényi entropy is another function of the same sum, with the same limit for `q = 1` and the maximum `log E`:

$$R_q(p) = \frac{\log \sum_i p_i^q}{1 - q}$$
"""

import math
from typing import Literal

import torch
from torch import Tensor

from moe_adapt.errors import UserError

__all__ = [
    "EntropyKind",
    "check_entropy",
    "max_tsallis_entropy",
    "renyi_entropy",
    "routing_entropy",
    "tsallis_entropy",
]

EntropyKind = Literal["tsallis", "renyi"]


def check_entropy(q: float, kind: str = "tsallis") -> None:
    """Raise `UserError` unless the order of an entropy is positive and its kind known."""
    if q <= 0:
        raise UserError(f"the order q of an entropy is positive, got {q}.")
    if kind not in ("tsallis", "renyi"):
        raise UserError(f"the kind of an entropy is 'tsallis' or 'renyi', got {kind!r}.")


def max_tsallis_entropy(num_experts: int, q: float) -> float:
    """Return the entropy of the uniform distribution over `num_experts` experts."""
    if q == 1:
        return math.log(num_experts)
    return (1 - num_experts ** (1 - q)) / (q - 1)


def tsallis_entropy(probs: Tensor, q: float, normalize: bool = True) -> Tensor:
    """Return the Tsallis entropy of order `q` along the last axis.

    Args:
        probs: Probabilities, [..., E]; zeros are allowed and contribute zero.
        q: Order; 1 is Shannon's entropy.
        normalize: Whether to divide by the entropy of the uniform distribution. With one expert the result is
            0.

    Returns:
        Entropies, [...].

    >>> tsallis_entropy(torch.tensor([0.5, 0.3, 0.15, 0.05]), q=1.1).item()  # doctest: +ELLIPSIS
    0.821...
    """
    num_experts = probs.shape[-1]
    if num_experts == 1:
        return torch.zeros_like(probs[..., 0])
    some = probs > 0
    safe = probs.masked_fill(~some, 1)  # a probability of exactly zero has entropy and gradient zero
    if q == 1:
        entropy = -(probs * safe.log()).sum(dim=-1)
    else:
        entropy = (1 - (safe.pow(q) * some).sum(dim=-1)) / (q - 1)
    return entropy / max_tsallis_entropy(num_experts, q) if normalize else entropy


def renyi_entropy(probs: Tensor, q: float) -> Tensor:
    """Return the Rényi entropy of order `q` along the last axis, divided by that of the uniform distribution.

    Args:
        probs: Probabilities, [..., E]; zeros are allowed and contribute zero.
        q: Order; 1 is Shannon's entropy.

    >>> renyi_entropy(torch.tensor([0.5, 0.5, 0.0, 0.0]), q=2.0).item()
    0.5
    """
    num_experts = probs.shape[-1]
    if q == 1 or num_experts == 1:
        return tsallis_entropy(probs, 1)
    some = probs > 0
    mass = (probs.masked_fill(~some, 1).pow(q) * some).sum(dim=-1)
    return mass.log() / (1 - q) / math.log(num_experts)


def routing_entropy(probs: Tensor, q: float, kind: EntropyKind) -> Tensor:
    """Return the normalised entropy of a kind and order along the last axis."""
    return tsallis_entropy(probs, q) if kind == "tsallis" else renyi_entropy(probs, q)
