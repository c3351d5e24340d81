r"""Routers: task t's router weighs the experts 1 to t from the routing row of its own expert.

Two kinds behind one interface:

* `TriangularRouters`, as published: router m has a row per expert it knows, `g_m = R_m u_m + c_m`. All
  routers together are a lower triangle of `T(T+1)/2` rows: quadratic in the number of tasks.
* `KeyRouters`, ours, linear in the number of tasks: router m has a query map of rank q, and every expert one
  key that all later routers share, `g_{m,e} = k_e . (Q_m u_m) + c_e`. At 301 tasks, d = 768 and q = 16 that
  is a tenth of the numbers.

The gate keeps the top K entries of each chosen router and renormalises them, router by router; an expert
chosen by two routers gets both weights.
"""

import math
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import init

from moe_adapt.learners.care.growing import Growing

__all__ = ["KeyRouters", "TriangularRouters", "top_k_gates"]


def _trunc_normal(*shape: int) -> Tensor:
    return init.trunc_normal_(torch.empty(shape), std=0.02)


class TriangularRouters(Growing):
    """Routers with a row of their own for every expert they know.

    Args:
        width: Features, `d`.
    """

    tensors: ClassVar[tuple[str, ...]] = ("weight", "bias")

    def __init__(self, width: int) -> None:
        super().__init__({"weight": (width,), "bias": ()})
        self.width = width

    @property
    def count(self) -> int:
        """Number of routers, the newest included."""
        return math.isqrt(2 * len(self.frozen("bias"))) + (self.new("bias") is not None)

    def grow(self) -> None:
        """Add a trainable router over all experts so far and the one to come."""
        rows = self.count + 1
        self.append({"weight": _trunc_normal(rows, self.width), "bias": torch.zeros(rows)})

    def _router(self, index: int) -> tuple[Tensor, Tensor]:
        weight, bias = self.new("weight"), self.new("bias")
        if weight is not None and bias is not None and index == self.count - 1:
            return weight, bias
        start = index * (index + 1) // 2
        rows = slice(start, start + index + 1)
        return self.frozen("weight")[rows], self.frozen("bias")[rows]

    def forward(self, rows: Tensor, chosen: Tensor, experts: int) -> Tensor:
        """Return the logits of the chosen routers, [B, M, T]; minus infinity for experts unknown to a router.

        Args:
            rows: Routing rows of the experts of the chosen routers, [B, M, d].
            chosen: Indices of the routers, [B, M].
            experts: Number of experts in use, `T`.
        """
        flat, reads = chosen.flatten(), rows.flatten(0, 1)
        order = flat.argsort()
        used, sizes = torch.unique_consecutive(flat[order], return_counts=True)
        parts = []
        for index, read in zip(used.tolist(), reads[order].split(sizes.tolist()), strict=True):
            weight, bias = self._router(index)
            known = torch.nn.functional.linear(read, weight, bias)
            parts.append(torch.nn.functional.pad(known, (0, experts - known.shape[1]), value=float("-inf")))
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=order.device)
        return torch.cat(parts)[back].view(*chosen.shape, experts)


class KeyRouters(Growing):
    """Routers with a query map each, and one key per expert.

    Args:
        width: Features, `d`.
        rank: Numbers in a key, `q`.
    """

    tensors: ClassVar[tuple[str, ...]] = ("query", "key", "bias")

    def __init__(self, width: int, rank: int = 16) -> None:
        super().__init__({"query": (rank, width), "key": (rank,), "bias": ()})
        self.width = width
        self.rank = rank

    def grow(self) -> None:
        """Add a trainable query map, and the key of the expert to come."""
        query = init.uniform_(torch.empty(1, self.rank, self.width), -(self.width**-0.5), self.width**-0.5)
        self.append({"query": query, "key": _trunc_normal(1, self.rank), "bias": torch.zeros(1)})

    def forward(self, rows: Tensor, chosen: Tensor, experts: int) -> Tensor:
        """Return the logits of the chosen routers, [B, M, T]; minus infinity for experts unknown to a router.

        Args:
            rows: Routing rows of the experts of the chosen routers, [B, M, d].
            chosen: Indices of the routers, [B, M].
            experts: Number of experts in use, `T`.
        """
        queries = torch.einsum("bmd,bmqd->bmq", rows, self.whole("query")[chosen])
        logits = queries @ self.whole("key")[:experts].T + self.whole("bias")[:experts]
        unknown = torch.arange(experts, device=chosen.device) > chosen.unsqueeze(-1)
        return logits.masked_fill(unknown, float("-inf"))


def top_k_gates(logits: Tensor, k: int, keep_newest: bool = False) -> Tensor:
    """Return the weights of the experts, summed over the routers, [B, T].

    Args:
        logits: Logits of the chosen routers, [B, M, T].
        k: Entries that each router keeps; a router that knows fewer keeps all.
        keep_newest: Whether the first router keeps the last expert whatever its logit.

    >>> top_k_gates(torch.tensor([[[0.0, 0.0, -9.0]]]), k=2)
    tensor([[0.5000, 0.5000, 0.0000]])
    """
    rank = logits.detach()
    if keep_newest:
        rank = rank.clone()
        rank[:, 0, -1] = float("inf")
    kept = rank.topk(min(k, logits.shape[-1]), dim=-1).indices
    weights = logits.gather(-1, kept).softmax(dim=-1)
    return torch.zeros_like(logits).scatter(-1, kept, weights).sum(dim=1)
