r"""How evenly tokens are spread over experts: load, importance, dead experts, MaxVio.

With the selection `s` (0 or 1) and the gates `g` of `N` tokens over `E` experts:

$$\mathrm{load}_e = \frac{\sum_t s_{te}}{\sum_{t,e'} s_{te'}}, \qquad
\mathrm{importance}_e = \frac{1}{N} \sum_t g_{te}, \qquad
\mathrm{MaxVio} = E \max_e \mathrm{load}_e - 1$$

MaxVio is 0 at perfect balance and `E - 1` when one expert takes everything.

Reference:
    Shazeer et al., arXiv 1701.06538 (load, importance); Wang et al., "Auxiliary-Loss-Free Load Balancing
    Strategy for Mixture-of-Experts", arXiv 2408.15664 (MaxVio).
"""

import torch
from torch import Tensor

__all__ = ["dead_experts", "expert_importance", "expert_load", "max_violation"]


def expert_load(selected: Tensor) -> Tensor:
    """Return each expert's share of the (token, slot) picks, [E]; zeros if nothing was picked.

    Args:
        selected: Selection, bool [N, E].

    >>> expert_load(torch.tensor([[True, True, False], [True, False, False]]))
    tensor([0.6667, 0.3333, 0.0000])
    """
    picks = selected.sum(dim=0).to(torch.float64)
    return (picks / picks.sum().clamp(min=1)).to(torch.float32)


def expert_importance(gates: Tensor) -> Tensor:
    """Return the mean gate of each expert, [E]; zeros without tokens.

    Args:
        gates: Gates, [N, E], zero where not selected.

    >>> expert_importance(torch.tensor([[0.5, 0.5], [1.0, 0.0]]))
    tensor([0.7500, 0.2500])
    """
    return (gates.to(torch.float64).sum(dim=0) / max(len(gates), 1)).to(torch.float32)


def dead_experts(load: Tensor) -> int:
    """Return how many experts no token picked.

    Args:
        load: Shares or counts of picks, [E].

    >>> dead_experts(torch.tensor([0.7, 0.3, 0.0]))
    1
    """
    return int((load == 0).sum())


def max_violation(load: Tensor) -> float:
    """Return MaxVio, the largest load over the mean load, minus one; 0 if nothing was picked.

    Args:
        load: Shares or counts of picks, [E].

    >>> max_violation(torch.tensor([0.75, 0.25]))
    0.5
    """
    values = load.to(torch.float64)
    return float(values.max() / values.mean() - 1) if bool(values.sum() > 0) else 0.0
