"""The blocks of a transformer, and the features of samples after one of them."""

from typing import Any

import torch
from torch import Tensor, nn

from moe_adapt.errors import UserError

__all__ = ["block_features", "block_paths", "hidden_of"]


def block_paths(model: nn.Module) -> list[str]:
    """Return the paths of a model's blocks in their order: the longest list of modules that holds layers.

    Raises:
        UserError: If there is none.
    """
    best: list[str] = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList | nn.Sequential) or "moe_adapt_" in name:
            continue
        kinds = {type(child) for child in module}
        parts = [len(list(child.children())) for child in module]
        if len(kinds) == 1 and len(parts) > len(best) and min(parts, default=0) > 1:
            best = [f"{name}.{number}".lstrip(".") for number in range(len(parts))]
    if not best:
        raise UserError(
            f"{type(model).__name__} has no list of blocks, so there is no middle layer to route on."
        )
    return best


def hidden_of(output: Any) -> Tensor:
    """Return the hidden states [B, S, d] in a block's output."""
    hidden = output[0] if isinstance(output, tuple) else output
    if not isinstance(hidden, Tensor) or hidden.ndim < 3:
        raise UserError("a block's output is not a tensor [B, S, d]; samples cannot be routed on it.")
    return hidden


def block_features(hidden: Tensor, mask: Tensor | None) -> Tensor:
    """Return the mean of a block's output over the tokens that count, float32 [B, d].

    Args:
        hidden: Hidden states, [B, ..., d].
        mask: Tokens that count, bool [B, S]; None or another shape counts all. A sample without any counts
            all of its.
    """
    hidden = hidden.detach().flatten(1, -2).float()
    if mask is None or mask.shape != hidden.shape[:2]:
        return hidden.mean(dim=1)
    mask = mask | ~mask.any(dim=1, keepdim=True)
    weight = mask.to(hidden.dtype).unsqueeze(-1)
    return torch.where(weight > 0, hidden, 0).sum(dim=1) / weight.sum(dim=1)
