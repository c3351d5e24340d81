r"""Leave-one-out for `LdaRouter`, in closed form: which layer tells experts apart, and what is unusual.

Leaving out example `i` of expert `e` with residual $v = x_i - m_e$ takes
$\tfrac{n_e}{n_e - 1} v v^\top$ from the pooled scatter and moves the mean to $m_e - v / (n_e - 1)$. With
$P = \Sigma^{-1}$ and $c = \tfrac{1 - \rho}{n - E} \tfrac{n_e}{n_e - 1}$ the distance of `x_i` to another mean
becomes, by the formula of Sherman and Morrison,

$$u^\top P u + \frac{c\,(v^\top P u)^2}{1 - c\, v^\top P v}, \qquad u = x_i - m_k .$$

Shrinkage and the number of degrees of freedom stay as they are. Experts with one example are not judged.
"""

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from moe_adapt.routing.sample.lda import LdaRouter

__all__ = ["LeaveOneOut", "leave_one_out"]


class LeaveOneOut(NamedTuple):
    """How examples fare under statistics without them.

    Attributes:
        accuracy: Share that goes to its own expert, averaged over experts; NaN if none could be judged.
        novelty: Least distance to a mean of every judged example, [M].
        routes: How many of an expert's examples go to which expert, for experts that could be judged.
    """

    accuracy: float
    novelty: Tensor
    routes: dict[str, dict[str, int]]


def leave_one_out(examples: Mapping[str, Tensor], shrinkage: float | None = None) -> LeaveOneOut:
    """Return how each expert's examples are routed by the statistics of all others.

    Args:
        examples: Features of the examples of each expert, [M_e, d].
        shrinkage: See `LdaRouter`.
    """
    router = LdaRouter(shrinkage)
    for uid, features in examples.items():
        router.observe(features, uid)
    pooled = router.pooled()
    scale = (1 - pooled.shrinkage) / max(pooled.freedom, 1)
    shares, novelty, routes = [], [], {}
    for own, uid in enumerate(router.uids):
        x = examples[uid].double()
        count = len(x)
        if count < 2:
            continue
        v = x - pooled.means[own]
        u = x[:, None] - pooled.means  # [M, E, d]
        u[:, own] = v * (count / (count - 1))
        c = scale * count / (count - 1)
        projected = v @ pooled.precision  # [M, d]
        direct = torch.einsum("med,df,mef->me", u, pooled.precision, u)
        across = torch.einsum("md,med->me", projected, u)
        left = (1 - c * (projected * v).sum(dim=1, keepdim=True)).clamp(min=1e-9)
        distances = direct + c * across.square() / left
        went = Counter(router.uids[place] for place in distances.argmin(dim=1).tolist())
        shares.append(went[uid] / count)
        routes[uid] = dict(went.most_common())
        novelty.append(distances.amin(dim=1))
    if not shares:
        return LeaveOneOut(float("nan"), torch.zeros(0, dtype=torch.float64), {})
    return LeaveOneOut(sum(shares) / len(shares), torch.cat(novelty), routes)
