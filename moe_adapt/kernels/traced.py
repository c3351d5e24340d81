r"""The operator as a compiler should see it: plain tensor operations, without hand-written derivatives.

$$y = W x + B_{cat}\,(s\,(g \otimes 1_r) \odot A_{cat} x)$$

`torch.compile` differentiates, fuses and saves what it needs by itself. A custom operator would be a wall in
its graph: the products with the gates are memory-bound and cost nothing once they are fused into what stands
beside them. The choice between implementations (`dispatch`) is for eager calls.
"""

import torch.nn.functional as F
from torch import Tensor

__all__ = ["mixture"]


def mixture(x: Tensor, base: Tensor, a: Tensor, b: Tensor, scale: float, gates: Tensor) -> Tensor:
    """Return the base output plus the gated sum of the experts, [N, o], in the wider of their types.

    Args:
        x: Tokens, [N, d], in the type of the experts or under autocast.
        base: Output of the frozen layer, [N, o].
        a: Down-projections, [E, r, d]; [1, r, d] if the experts share one.
        b: Up-projections, [o, E, r].
        scale: The LoRA scale `s`.
        gates: Weight of each expert, [N, E].

    >>> import torch
    >>> x, a, b = torch.ones(1, 2), torch.ones(3, 1, 2), torch.ones(2, 3, 1)
    >>> mixture(x, torch.zeros(1, 2), a, b, 2.0, torch.tensor([[1.0, 0.5, 0.0]]))
    tensor([[6., 6.]])
    """
    _, experts, rank = b.shape
    hidden = F.linear(x, a.flatten(0, 1)).view(len(x), -1, rank)
    if experts == 1:
        # The order of operations of PEFT's LoRA.
        inner = hidden.flatten(1) * gates.to(hidden.dtype)
        return base + F.linear(inner, b.flatten(1)) * scale
    weighted = hidden * (gates * scale).to(hidden.dtype).unsqueeze(-1)
    return base + F.linear(weighted.flatten(1), b.flatten(1))
