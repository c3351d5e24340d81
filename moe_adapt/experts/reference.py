"""The mixture written expert by expert: the plain form that tests and benchmarks compare with."""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["loop_mixture"]


def loop_mixture(base: Tensor, x: Tensor, a: Tensor, b: Tensor, gates: Tensor, scale: float) -> Tensor:
    """Return `base + s sum_e g_e B_e A_e x`, gathering each expert's tokens in turn.

    Args:
        base: Output of the frozen layer, [N, o].
        x: Input, [N, d].
        a: Down-projections, [E, r, d].
        b: Up-projections, [o, E, r].
        gates: Weights, [N, E]; tokens with weight zero are left out.
        scale: The LoRA scale `s`.
    """
    result = base
    for expert in range(a.shape[0]):
        tokens = gates[:, expert].nonzero().squeeze(-1)
        output = F.linear(F.linear(x[tokens], a[expert]), b[:, expert])
        weight = gates[tokens, expert].to(output.dtype).unsqueeze(-1) * scale
        result = torch.index_add(result, 0, tokens, (output * weight).to(result.dtype))
    return result
