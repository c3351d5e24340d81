"""Can anybody tell what a model was trained on? The simplest attack: members have smaller losses.

A threshold on the loss tells training rows from others of the same kind; the area under its curve says how
well, over all thresholds. 1/2 means that nothing is known, 1 that all is. Far below 1/2 the losses of
forgotten rows are conspicuously *large*, which tells as much: look at the distance from 1/2.

Reference: Yeom et al., "Privacy Risk in Machine Learning: Analyzing the Connection to Overfitting", arXiv
1709.01604.
"""

from torch import Tensor

__all__ = ["membership_auc"]


def membership_auc(members: Tensor, others: Tensor) -> float:
    """Return the area under the curve of the attack by loss.

    Args:
        members: Losses of rows that were trained on, [N].
        others: Losses of rows that were not, [M].

    >>> import torch
    >>> membership_auc(torch.tensor([0.1, 0.2]), torch.tensor([0.3, 0.2]))
    0.875
    """
    less = (members[:, None] < others).double() + 0.5 * (members[:, None] == others).double()
    return float(less.mean())
