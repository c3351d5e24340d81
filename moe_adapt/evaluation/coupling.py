r"""Do routers know their experts? Geometric coupling of router rows and experts, similarity of router rows.

A token that is routed to expert `e` moves both the router row $R_e$ and the rows of the expert's
down-projection $A_e$ along the token. Trained together they align:

$$\mathrm{coupling} = \frac{1}{E} \sum_e \max_k |\cos(R_e, A_{e,k})|, \qquad
\mathrm{similarity} = \frac{1}{E (E - 1)} \sum_{e \ne f} \cos(R_e, R_f)$$

Balance losses make router rows more similar; similar rows decide by small differences.

Reference:
    "Routers Learn the Geometry of Their Experts" (abstract and notes; the formulas of the metrics are ours).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["router_expert_coupling", "row_similarity"]


def router_expert_coupling(rows: Tensor, down: Tensor) -> float:
    """Return the mean over experts of the largest absolute cosine between router row and expert, in [0, 1].

    Args:
        rows: Router rows, [E, d].
        down: Down-projections of the experts, [E, r, d].

    >>> rows = torch.eye(2)
    >>> router_expert_coupling(rows, -2 * rows[:, None])
    1.0
    """
    cosine = torch.einsum("ed,erd->er", F.normalize(rows, dim=-1), F.normalize(down, dim=-1))
    return float(cosine.abs().amax(dim=-1).mean())


def row_similarity(rows: Tensor) -> float:
    """Return the mean cosine of two different router rows, in [-1, 1]; NaN for a single expert.

    Args:
        rows: Router rows, [E, d].

    >>> row_similarity(torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 1.0]]))  # doctest: +ELLIPSIS
    0.3333...
    """
    experts = len(rows)
    if experts < 2:
        return float("nan")
    unit = F.normalize(rows.to(torch.float64), dim=-1)
    cosine = unit @ unit.T
    return float((cosine.sum() - cosine.diagonal().sum()) / (experts * (experts - 1)))
