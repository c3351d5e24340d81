r"""Leave-one-out for `LdaRouter`, in closed form: which layer tells experts apart, and what is unusual.

Leaving out example `i` of class `c` with residual $v = x_i - m_c$ takes $\tfrac{n_c}{n_c - 1} v v^\top$ from
the pooled scatter and moves the mean to $m_c - v / (n_c - 1)$. With $P = \Sigma^{-1}$ and
$b = \tfrac{1 - \rho}{n - C} \tfrac{n_c}{n_c - 1}$ the distance of `x_i` to another mean becomes, by the
formula of Sherman and Morrison,

$$u^\top P u + \frac{b\,(v^\top P u)^2}{1 - b\, v^\top P v}, \qquad u = x_i - m_k .$$

Shrinkage and the number of degrees of freedom stay as they are. A class of one example is gone without it,
and the expert's other classes have to stand in. Experts with one example are not judged.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from moe_adapt.routing.sample.classes import class_keys
from moe_adapt.routing.sample.lda import LdaRouter, Pooled

__all__ = ["LeaveOneOut", "leave_one_out", "leave_out_of"]


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


def leave_one_out(
    examples: Mapping[str, Tensor],
    shrinkage: float | None = None,
    labels: Mapping[str, Sequence[str | None] | None] | None = None,
) -> LeaveOneOut:
    """Return how each expert's examples are routed by the statistics of all others.

    Args:
        examples: Features of the examples of each expert, [M_e, d].
        shrinkage: See `LdaRouter`.
        labels: Class of each example by expert; which classes count is decided with all examples.
    """
    router = LdaRouter(shrinkage)
    for uid, features in examples.items():
        router.observe(features, uid, (labels or {}).get(uid))
    return leave_out_of(router, examples, labels)


def leave_out_of(
    router: LdaRouter,
    examples: Mapping[str, Tensor],
    labels: Mapping[str, Sequence[str | None] | None] | None = None,
) -> LeaveOneOut:
    """Return how examples are routed by a router that saw them, each left out in turn.

    Args:
        router: Saw all examples of these experts, and perhaps other experts.
        examples: Features of the examples of some experts, [M_e, d].
        labels: Class of each example by expert, as the router saw them.
    """
    pooled = router.pooled()
    shares, novelty, routes = [], [], {}
    first = 0
    for expert, uid in enumerate(router.uids):
        moments, count = router.moments[uid], len(examples.get(uid, ()))
        if count > 1:
            place = torch.searchsorted(moments.classes, class_keys((labels or {}).get(uid), examples[uid]))
            x, sizes = examples[uid].detach().cpu().double(), moments.counts[place].double()
            distances = _left_out(x, first + place, sizes, pooled)
            went = Counter(pooled.owner[distances.argmin(dim=1)].tolist())
            shares.append(went[expert] / count)
            routes[uid] = {router.uids[to]: times for to, times in went.most_common()}
            novelty.append(distances.amin(dim=1))
        first += len(moments.classes)
    if not shares:
        return LeaveOneOut(float("nan"), torch.zeros(0, dtype=torch.float64), {})
    return LeaveOneOut(sum(shares) / len(shares), torch.cat(novelty), routes)


def _left_out(x: Tensor, own: Tensor, sizes: Tensor, pooled: Pooled) -> Tensor:
    """Return distances of examples to all means without them, [M, C].

    Args:
        x: Features of the examples, [M, d].
        own: The mean that each is part of, [M].
        sizes: How many examples that mean has, [M].
        pooled: Means and covariance with all examples.
    """
    scale = (1 - pooled.shrinkage) / max(pooled.freedom, 1)
    alone = sizes == 1
    ratio = (sizes / (sizes - 1).clamp(min=1))[:, None]
    center = pooled.means.mean(dim=0)
    x, means = x - center, pooled.means - center
    v = x - means[own]
    projected, cross = v @ pooled.precision, means @ pooled.precision
    squares = (x @ pooled.precision * x).sum(dim=1, keepdim=True)
    direct = squares - 2 * x @ cross.t() + (cross * means).sum(dim=1)
    across = (projected * x).sum(dim=1, keepdim=True) - projected @ means.t()
    spread = (projected * v).sum(dim=1, keepdim=True)
    mine = own[:, None]
    direct.scatter_(1, mine, ratio**2 * spread)
    across.scatter_(1, mine, ratio * spread)
    b = scale * ratio
    distances = direct + b * across.square() / (1 - b * spread).clamp(min=1e-9)
    gone = torch.where(alone, torch.inf, distances.gather(1, mine).squeeze(1))
    return distances.scatter(1, mine, gone[:, None])
