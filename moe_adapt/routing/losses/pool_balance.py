r"""Pool balance: equal use of the experts of a pool over all layers that share it (UniPool).

For a pool of `E` experts and `L` layers, with `f_e` the mean over layers of the shares of (token, slot) pairs
that go to expert `e`, and `P_e^l` the mean probability of the expert at layer `l`,

    loss = E sum_e f_e (1 / L) sum_l P_e^l

So the sum of what the layers contribute is `E` times the product of `f` with the mean of `P`: layers may
differ in what they use, as long as the pool as a whole is used. There is no gradient through `f`. A layer
with experts of its own is a pool of one. The loss is the mean over pools.

Departures: the release takes `f` from the forward before, because a layer cannot see later ones; auxiliary
losses here look at the decisions of all layers, so ours is that of the same forward. `P` is the softmax of
the scorer's logits; how the release normalises it beside its NormRouter was not verified.

Reference: Huang et al., "UniPool: A Globally Shared Expert Pool for Mixture-of-Experts", arXiv 2605.06665.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from moe_adapt.routing.base import AUX_LOSSES, AuxLoss
from moe_adapt.routing.records import RecordGroup
from moe_adapt.routing.softmax import softmax

__all__ = ["PoolBalanceLoss", "pool_balance"]


def pool_balance(shares: Tensor, probs: Tensor) -> Tensor:
    """Return the loss of one pool, 1 at perfect balance.

    Args:
        shares: Share of each expert at each layer, [L, E].
        probs: Mean probability of each expert at each layer, [L, E].

    >>> pool_balance(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.9, 0.1], [0.1, 0.9]]))
    tensor(1.)
    """
    return probs.shape[-1] * (shares.detach().mean(dim=0) * probs.mean(dim=0)).sum()


@AUX_LOSSES.register("pool_balance")
class PoolBalanceLoss(AuxLoss):
    """Pushes all routers of a pool together towards equal use of its experts.

    Args:
        weight: Coefficient in the total loss. Higher: a more even use of the pool.
    """

    reference = "UniPool, Huang et al. 2026, arXiv 2605.06665"

    def __init__(self, weight: float = 1e-2) -> None:
        super().__init__(weight)

    def forward(self, groups: Sequence[RecordGroup]) -> Tensor:
        """Return the mean of the losses of the pools."""
        pools: dict[str, tuple[list[Tensor], list[Tensor]]] = {}
        for group in groups:
            counts = group.token_mean(group.selected.to(group.logits.dtype))
            shares = counts / counts.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(counts.dtype).tiny)
            probs = group.token_mean(softmax(group.scores))
            for place, (site, pool) in enumerate(zip(group.sites, group.pools, strict=True)):
                name = f"site {site}" if pool is None else f"pool {pool}"
                found = pools.setdefault(name, ([], []))
                found[0].append(shares[place])
                found[1].append(probs[place])
        losses = [pool_balance(torch.stack(shares), torch.stack(probs)) for shares, probs in pools.values()]
        return torch.stack(losses).mean()
