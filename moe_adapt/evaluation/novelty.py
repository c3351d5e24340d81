r"""Signs that no expert fits an input: experts disagree, or no prototype is near.

For the outputs $y_1 \dots y_m$ of the top `m` experts, each run alone, and prototypes $c_k$:

$$D(x) = \frac{1}{C} \sum_c \mathrm{Var}_i\, y_{ic} \quad \text{or} \quad
D(x) = H\Big(\frac{1}{m} \sum_i y_i\Big) - \frac{1}{m} \sum_i H(y_i), \qquad
G(x) = 1 - \max_k \cos(x, c_k)$$

Wrong specialist: `D` is high. No specialist: the coverage gap `G` is high. `G` can also be taken from the
router, as the free energy of its logits. Uses: out-of-distribution flag, abstention, the trigger for a new
expert in a stream without task boundaries.

Reference:
    "Transitive Expert Error", of which only the abstract was available; the formulas are ours.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from moe_adapt.errors import UserError

__all__ = ["coverage_gap", "expert_disagreement", "routing_energy"]


def expert_disagreement(outputs: Tensor, kind: Literal["variance", "js"] = "variance") -> Tensor:
    """Return how far the experts' outputs are apart, [N]; 0 for identical experts.

    Args:
        outputs: Output of each of `m` experts run alone, [N, m, C]; probabilities for ``js``.
        kind: ``variance`` over the experts, mean over the features; or ``js``, the Jensen-Shannon divergence
            of `m` distributions in nats, at most `log m`.

    Raises:
        UserError: For an unknown kind.

    >>> expert_disagreement(torch.tensor([[[1.0, 0.0], [3.0, 0.0]]]))
    tensor([0.5000])
    """
    if kind == "variance":
        return outputs.var(dim=1, unbiased=False).mean(dim=-1)
    if kind == "js":
        entropy = torch.special.entr(outputs).sum(dim=-1)
        mixed = torch.special.entr(outputs.mean(dim=1)).sum(dim=-1)
        return (mixed - entropy.mean(dim=1)).clamp(min=0)
    raise UserError(f"there is no disagreement {kind!r}; choose variance or js.")


def coverage_gap(x: Tensor, prototypes: Tensor) -> Tensor:
    """Return one minus the largest cosine to a prototype, [N], in [0, 2]; 0 on a prototype.

    Args:
        x: Inputs, [N, d].
        prototypes: Prototypes, such as class or task means, [P, d].

    >>> coverage_gap(torch.tensor([[2.0, 0.0], [0.0, -1.0]]), torch.eye(2))
    tensor([0., 1.])
    """
    cosine = F.normalize(x, dim=-1) @ F.normalize(prototypes, dim=-1).T
    return (1 - cosine.max(dim=-1).values).clamp(min=0)


def routing_energy(logits: Tensor) -> Tensor:
    """Return `-logsumexp(z)`, [N]: high where no expert answers.

    Args:
        logits: Router logits, [N, E].

    >>> routing_energy(torch.tensor([[0.0, 0.0]])).item()  # doctest: +ELLIPSIS
    -0.6931...
    """
    return -torch.logsumexp(logits, dim=-1)
