r"""Entropies of routing distributions, normalised to 1 for the uniform one and 0 for a single expert.

Tsallis entropy of order `q` (nats for `q = 1`, where it is Shannon's):

$$S_q(p) = \frac{1 - \sum_i p_i^q}{q - 1}, \qquad S_1(p) = -\sum_i p_i \log p_i$$
"""

import math

import torch
from torch import Tensor

from moe_adapt.errors import UserError

__all__ = ["check_order", "max_tsallis_entropy", "tsallis_entropy"]


def check_order(q: float) -> None:
    """Raise `UserError` unless the order of an entropy is positive."""
    if q <= 0:
        raise UserError(f"the order q of an entropy is positive, got {q}.")


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
