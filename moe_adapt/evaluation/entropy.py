r"""How decided a router is: the entropy of its probabilities, 1 for uniform and 0 for one expert.

$$H(p) = -\frac{1}{\log E} \sum_e p_e \log p_e$$
"""

import math

import torch
from torch import Tensor

__all__ = ["router_entropy"]


def router_entropy(probs: Tensor) -> Tensor:
    """Return the normalised Shannon entropy of each token, [...]; 0 with a single expert.

    Args:
        probs: Router probabilities, [..., E].

    >>> router_entropy(torch.tensor([[0.25, 0.25, 0.25, 0.25], [0.5, 0.5, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]]))
    tensor([1.0000, 0.5000, 0.0000])
    """
    experts = probs.shape[-1]
    entropy = torch.special.entr(probs.to(torch.float32)).sum(dim=-1)
    return entropy / math.log(experts) if experts > 1 else torch.zeros_like(entropy)
