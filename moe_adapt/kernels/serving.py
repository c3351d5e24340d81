"""Many adapters in one batch: each sample names its own, and one call of the operator computes all.

A batch whose samples use different LoRA adapters on the same frozen layer is a routed mixture with one expert
per token, gate one, and an index that comes from the caller instead of a router. Adapters of unequal rank are
padded with zero rows, which add nothing; each adapter's scale becomes its gate, because scales differ.
References: Punica (arXiv 2310.18547), S-LoRA (arXiv 2311.03285).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

from moe_adapt.errors import UserError
from moe_adapt.kernels.operator import routed_lora

__all__ = ["AdapterStack", "mixed_batch", "stack_factors"]


def stack_factors(
    blocks: Sequence[tuple[Tensor, Tensor]], dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """Put experts of unequal rank side by side, padded with zeros; gradients reach them.

    Args:
        blocks: Factors [E_i, r_i, d] and [o, E_i, r_i].
        dtype: Dtype of the result; None takes the widest of the blocks.

    Returns:
        Factors [E, r, d] and [o, E, r] of all experts, `r` being the largest rank.

    Raises:
        UserError: If the blocks do not belong to one layer.

    >>> small, large = torch.ones(1, 1, 3), torch.ones(1, 2, 3)
    >>> a, b = stack_factors([(small, torch.ones(4, 1, 1)), (large, torch.ones(4, 1, 2))])
    >>> a.shape, b[0]
    (torch.Size([2, 2, 3]), tensor([[1., 0.],
            [1., 1.]]))
    """
    widths = {(a.shape[2], b.shape[0]) for a, b in blocks}
    if len(widths) != 1 or any(a.shape[:2] != b.shape[1:] for a, b in blocks):
        shapes = ", ".join(f"{list(a.shape)} and {list(b.shape)}" for a, b in blocks)
        raise UserError(f"adapters of one layer have factors [E, r, d] and [o, E, r], got {shapes}.")
    if dtype is None:
        dtype = reduce(torch.promote_types, [factor.dtype for block in blocks for factor in block])
    rank = max(a.shape[1] for a, _ in blocks)
    down = [F.pad(a.to(dtype), (0, 0, 0, rank - a.shape[1])) for a, _ in blocks]
    up = [F.pad(b.to(dtype), (0, rank - b.shape[2])) for _, b in blocks]
    return torch.cat(down), torch.cat(up, dim=1)


@dataclass(frozen=True)
class AdapterStack:
    """Several LoRA adapters at one layer.

    Attributes:
        a: Down-projections, [E, r, d].
        b: Up-projections, [o, E, r].
        scales: LoRA scale of each adapter, fp32 [E].
    """

    a: Tensor
    b: Tensor
    scales: Tensor

    @classmethod
    def of(cls, adapters: Sequence[tuple[Tensor, Tensor, float]]) -> "AdapterStack":
        """Stack LoRA adapters: their factors [r_i, d] and [o, r_i], and their scales."""
        a, b = stack_factors([(a.unsqueeze(0), b.unsqueeze(1)) for a, b, _ in adapters])
        scales = torch.tensor([scale for *_, scale in adapters], dtype=torch.float32, device=a.device)
        return cls(a, b, scales)


def mixed_batch(x: Tensor, base: Tensor, stack: AdapterStack, adapter: Tensor, impl: str = "auto") -> Tensor:
    """Return `base` plus each token's own adapter applied to `x`.

    Args:
        x: Tokens, [N, d], in the dtype of the stack.
        base: Output of the frozen layer, [N, o].
        stack: The adapters.
        adapter: Adapter of each token, int [N]; -1 for none, which leaves `base` as it is.
        impl: Name of the implementation (`routed_lora`).

    Returns:
        The sum, [N, o], in the wider of the dtypes of `base` and of the stack.

    Raises:
        UserError: If shapes, dtypes or devices do not fit.
    """
    if adapter.shape != x.shape[:1]:
        raise UserError(
            f"adapter has the shape {list(adapter.shape)}, expected one id per token, [{len(x)}]."
        )
    weight = stack.scales[adapter.clamp(min=0).long()]
    return routed_lora(
        x, base, stack.a, stack.b, 1.0, index=adapter.unsqueeze(1), weight=weight.unsqueeze(1), impl=impl
    )
