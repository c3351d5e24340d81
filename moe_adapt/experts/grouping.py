r"""Which experts to merge: the most used ones stay, and each of the others joins the one it is most like.

Two experts are alike if their changes of weight point the same way,

$$\cos(e, f) = \frac{\langle D_e, D_f \rangle}{\lVert D_e \rVert\, \lVert D_f \rVert}, \qquad D_e = B_e A_e,$$

which does not depend on how a change is split into factors. MC-SMoE groups by the similarity of router logits
and merges neurons after matching them; LoRA experts need no matching, so the changes themselves are compared.

Reference: Li et al., "Merge, Then Compress: Demystify Efficient SMoE with Hints from Its Routing Policy",
arXiv 2310.01334.
"""

import torch
from torch import Tensor

from moe_adapt.errors import UserError
from moe_adapt.experts.low_rank import inner_product

__all__ = ["groups_around_most_used", "most_used", "random_groups", "similarity"]


def similarity(a: Tensor, b: Tensor) -> Tensor:
    """Return the cosine of every two experts' changes of weight, [E, E]; 0 with one that changes nothing.

    Args:
        a: Down-projections, [E, r, d]; [1, r, d] if experts share one.
        b: Up-projections, [o, E, r].
    """
    up = b.movedim(1, 0).double()
    down = a.double().expand(len(up), -1, -1)
    products = inner_product(down[:, None], up[:, None], down[None], up[None])
    norms = products.diagonal().clamp(min=0).sqrt()
    scale = norms[:, None] * norms
    return torch.where(scale > 0, products / scale.clamp(min=torch.finfo(scale.dtype).tiny), 0.0)


def most_used(use: Tensor, keep: int) -> list[int]:
    """Return the most used experts, ascending.

    Args:
        use: How much each expert is used, [E].
        keep: How many stay.

    Raises:
        UserError: If `keep` is not from 1 to the number of experts.
    """
    _checked(len(use), keep)
    return sorted(use.sort(descending=True, stable=True).indices[:keep].tolist())


def groups_around_most_used(alike: Tensor, use: Tensor, keep: int) -> list[list[int]]:
    """Return one group per expert that stays, ascending by that expert, which is its group's first member.

    Args:
        alike: Similarity of every two experts, [E, E].
        use: How much each expert is used, [E].
        keep: How many stay.

    Raises:
        UserError: If `keep` is not from 1 to the number of experts.

    >>> alike = torch.tensor([[1.0, 0.9, 0.0], [0.9, 1.0, 0.1], [0.0, 0.1, 1.0]])
    >>> groups_around_most_used(alike, torch.tensor([0.5, 0.1, 0.4]), keep=2)
    [[0, 1], [2]]
    """
    stay = most_used(use, keep)
    groups = {expert: [expert] for expert in stay}
    for expert in range(len(use)):
        if expert not in groups:
            groups[max(stay, key=lambda other: (float(alike[expert, other]), -other))].append(expert)
    return list(groups.values())


def random_groups(count: int, keep: int, seed: int) -> list[list[int]]:
    """Return as many random groups, none empty, ascending by their first member.

    Args:
        count: Number of experts.
        keep: Number of groups.
        seed: Decides which.

    Raises:
        UserError: If `keep` is not from 1 to the number of experts.
    """
    _checked(count, keep)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    groups = [sorted(order[start::keep]) for start in range(keep)]
    return sorted(groups)


def _checked(count: int, keep: int) -> None:
    if not 1 <= keep <= count:
        raise UserError(f"of {count} experts 1 to {count} can stay, not {keep}.")
