"""Random problems, and the operator written as its definition: a loop over tokens and experts."""

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

NAMES = ("base", "x", "a", "b", "gates")


def problem(tokens, width, out, experts, rank, dtype=torch.float64, seed=0, density=0.6):
    """Return base, x, a, b, gates of unit scale, as leaves with gradient."""
    generator = torch.Generator().manual_seed(seed)
    base, x, a, b = (
        torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)
        for shape in ((tokens, out), (tokens, width), (experts, rank, width), (out, experts, rank))
    )
    gates = torch.rand(tokens, experts, generator=generator, dtype=torch.float64)
    gates = (gates * (torch.rand(tokens, experts, generator=generator) < density)).to(dtype)
    return [tensor.requires_grad_() for tensor in (base, x, a, b, gates)]


def slots(tokens, experts, k, dtype=torch.float64, seed=0, empty=0.2):
    """Return an index [N, K] of different experts, some slots empty, and weights, a leaf with gradient."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.rand(tokens, experts, generator=generator).argsort(dim=1)[:, :k].to(torch.int32)
    index = index.masked_fill(torch.rand(tokens, k, generator=generator) < empty, -1)
    weight = torch.rand(tokens, k, generator=generator, dtype=torch.float64).to(dtype)
    return index, weight.requires_grad_()


def definition(base, x, a, b, gates, scale):
    """Return `base + s sum_e g_e B_e A_e x`, token by token."""
    rows = [
        base[t] + scale * sum(gates[t, e] * (b[:, e] @ (a[e] @ x[t])) for e in range(len(a)))
        for t in range(len(x))
    ]
    return torch.stack(rows) if rows else base


def gradients(result, tensors, dy=None):
    """Return the gradients of `tensors` for the output gradient `dy` (a fixed ramp by default)."""
    if dy is None:
        dy = torch.linspace(0.5, 1.5, result.numel(), dtype=torch.float64).to(result.dtype).view_as(result)
    return torch.autograd.grad(result, tensors, dy, materialize_grads=True, retain_graph=True)


class Made(TorchDispatchMode):
    """Keeps every tensor that an operation returns inside the block."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: list[Tensor] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.tensors += [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        return result

    def as_large_as(self, tensor: Tensor) -> bool:
        """Return whether something of at least the size of a tensor was made, elsewhere than there."""
        return any(t.numel() >= tensor.numel() and t.data_ptr() != tensor.data_ptr() for t in self.tensors)
