r"""How far two routings of the same tokens agree: of two checkpoints, two precisions, two seeds.

With the selected sets `A_t` and `B_t` of token `t`:

$$\mathrm{overlap} = \frac{1}{N} \sum_t \frac{2 |A_t \cap B_t|}{|A_t| + |B_t|}, \qquad
\mathrm{stability} = \frac{1}{N} \sum_t [A_t = B_t]$$

For top-k routing the overlap is the usual `|A ∩ B| / k`; this form also holds where the number of experts
varies per token. Two empty sets agree. `chance` is the overlap of unrelated routings of the same loads: of
`A` with the tokens of `B` shuffled. Report it beside every overlap.
"""

import torch
from torch import Tensor

__all__ = ["leak", "permuted_overlap", "set_overlap", "set_stability", "top1_agreement"]


def _mean(values: Tensor) -> float:
    return float(values.to(torch.float64).mean()) if len(values) else float("nan")


def top1_agreement(a: Tensor, b: Tensor) -> float:
    """Return the share of tokens whose first expert is the same; NaN without tokens.

    Args:
        a: First expert of each token, [N].
        b: The same of the other routing, [N].

    >>> top1_agreement(torch.tensor([0, 1, 2, 2]), torch.tensor([0, 1, 1, 2]))
    0.75
    """
    return _mean(a == b)


def set_overlap(a: Tensor, b: Tensor) -> float:
    """Return the mean overlap of the selected sets, in [0, 1]; NaN without tokens.

    Args:
        a: Selection, bool [N, E].
        b: The other selection, bool [N, E].

    >>> set_overlap(torch.tensor([[True, True, False]]), torch.tensor([[True, False, True]]))
    0.5
    """
    both = (a & b).sum(dim=-1).to(torch.float64)
    sizes = a.sum(dim=-1) + b.sum(dim=-1)
    return _mean(torch.where(sizes == 0, torch.ones_like(both), 2 * both / sizes.clamp(min=1)))


def permuted_overlap(a: Tensor, b: Tensor, seed: int = 0) -> float:
    """Return the overlap of `a` with the shuffled tokens of `b`, the level that chance gives.

    Args:
        a: Selection, bool [N, E].
        b: The other selection, bool [N, E].
        seed: Fixes the shuffle.

    >>> permuted_overlap(torch.tensor([[True, False]] * 3), torch.tensor([[True, False]] * 3))
    1.0
    """
    order = torch.randperm(len(b), generator=torch.Generator().manual_seed(seed))
    return set_overlap(a, b[order])


def set_stability(a: Tensor, b: Tensor) -> float:
    """Return the share of tokens whose selected set is the same; NaN without tokens.

    Args:
        a: Selection, bool [N, E].
        b: The other selection, bool [N, E].

    >>> set_stability(torch.tensor([[True, False], [True, True]]), torch.tensor([[True, False]] * 2))
    0.5
    """
    return _mean((a == b).all(dim=-1))


def leak(gates: Tensor, old_experts: int) -> float:
    """Return the share of gate mass on experts that were added later; 0 if there is no mass.

    Args:
        gates: Gates, [N, E].
        old_experts: How many experts there were before; the added ones come after them.

    >>> leak(torch.tensor([[0.5, 0.25, 0.25]]), old_experts=2)
    0.25
    """
    mass = gates.abs().to(torch.float64).sum(dim=0)
    total = float(mass.sum())
    return float(mass[old_experts:].sum()) / total if total else 0.0
