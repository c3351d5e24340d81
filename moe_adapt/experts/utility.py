r"""How useful is each expert: scores to choose by which experts are copied, kept or merged.

With the factors $w = (A_e, B_e)$ of an expert, their gradient $g$ (of the task loss, mean over batches) and
the second moment $v$ of that gradient (Adam's):

| score | formula | reads |
|---|---|---|
| `norm` | $\lVert B_e A_e \rVert_F$ | how much the expert changes the weight |
| `weight_gradient` | $\sum \lvert w\, g \rvert$ | how much the loss changes without it, to first order |
| `gradient` | $\sum g^2$ | how much it still has to learn |
| `adam` | $\sum g^2 / (v + 10^{-8})$ | the same, in units of what its gradient usually is |

The release takes the norm of each weight matrix by itself; ours is that of their product, which does not
depend on how a change of weight is split into factors.

`copies_by_utility` spends a number of copies on the best first, at most `most` each before the next gets any,
as the release does.

Reference: "Expert Upcycling: Shifting the Compute-Efficient Frontier of Mixture-of-Experts",
amazon-science/expert-upcycling.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from moe_adapt.errors import UserError, did_you_mean
from moe_adapt.experts.low_rank import inner_product

__all__ = ["GradientScore", "copies_by_utility", "expert_norms", "gradient_utility", "share_above"]

GradientScore = Literal["weight_gradient", "gradient", "adam"]


def expert_norms(a: Tensor, b: Tensor) -> Tensor:
    """Return the Frobenius norm of each expert's change of weight, [E].

    Args:
        a: Down-projections, [E, r, d]; [1, r, d] if experts share one.
        b: Up-projections, [o, E, r].

    >>> expert_norms(torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[2.0]]]))
    tensor([10.], dtype=torch.float64)
    """
    up = b.movedim(1, 0).double()
    down = a.double().expand(len(up), -1, -1)
    return inner_product(down, up, down, up).clamp(min=0).sqrt()


def gradient_utility(
    score: GradientScore, weights: Tensor, gradients: Tensor, moments: Tensor, dim: int
) -> Tensor:
    """Return a score of each expert from one stacked factor, float64 [E]; add those of `A` and `B`.

    Args:
        score: Which one.
        weights: The factor: `A` [E, r, d] or `B` [o, E, r].
        gradients: Its gradient.
        moments: Second moment of the gradient, such as ``exp_avg_sq`` of Adam.
        dim: The dimension of the experts.

    Raises:
        UserError: If there is no such score.

    >>> ones = torch.ones(2, 1, 3)
    >>> gradient_utility("weight_gradient", ones, torch.tensor([-1.0, 2.0])[:, None, None] * ones, ones, 0)
    tensor([3., 6.], dtype=torch.float64)
    """
    w, g, v = (tensor.double() for tensor in (weights, gradients, moments))
    if score == "weight_gradient":
        values = (w * g).abs()
    elif score == "gradient":
        values = g.square()
    elif score == "adam":
        values = g.square() / (v + 1e-8)
    else:
        known = get_args(GradientScore)
        raise UserError(
            f"there is no score {score!r}.{did_you_mean(score, known)} Choose {', '.join(known)}."
        )
    return values.movedim(dim, 0).flatten(1).sum(dim=1)


def copies_by_utility(utility: Tensor, count: int, most: int = 3) -> list[int]:
    """Return which experts to copy, in order; one may occur several times.

    Args:
        utility: Score of each expert, [E].
        count: Number of copies.
        most: Most copies of an expert before the next best gets one; counted anew when all have as many.

    Raises:
        UserError: If `most` is below 1 or `count` below 0.

    >>> copies_by_utility(torch.tensor([0.1, 0.7, 0.2]), 4)
    [1, 1, 1, 2]
    """
    if most < 1 or count < 0:
        raise UserError(f"copies are 0 or more, and at least 1 of each at most; got {count} and {most}.")
    order = utility.sort(descending=True, stable=True).indices.tolist()
    cycle = [expert for expert in order for _ in range(most)]
    return [cycle[number % len(cycle)] for number in range(count)]


def share_above(use: Tensor, threshold: float) -> int:
    """Return how many experts have at least a share of their site's use; 1 if none has.

    Args:
        use: How much each expert is used, [E].
        threshold: Least share, from 0 to 1.

    Raises:
        UserError: If the threshold is no share.

    >>> share_above(torch.tensor([6.0, 3.0, 1.0]), 0.2), share_above(torch.ones(4), 0.5)
    (2, 1)
    """
    if not 0.0 <= threshold <= 1.0:
        raise UserError(f"a threshold is a share of a layer's use from 0 to 1, got {threshold}.")
    total = float(use.sum())
    shares = use / total if total > 0 else torch.full_like(use, 1 / len(use))
    return max(1, int((shares >= threshold).sum()))
