r"""Classes of an expert's examples: which labels are worth means of their own, and what is kept of them.

An expert that knows ten classes has no single bell in feature space, and a mean per class says more. But each
is estimated from its own examples alone. So `C` classes of `n` examples count if there are `ENOUGH` per class
on average, and if the means differ by more than their own error, which the ratio of an analysis of variance
over all features says:

$$\frac{\sum_c n_c |m_c - m|^2 / (C - 1)}{\sum_i |x_i - m_{c(i)}|^2 / (n - C)} > 2,$$

about 1 if labels say nothing. A label per text (free answers) is thus left aside. An expert's own examples
decide, so that nothing depends on what stands beside it. Of a label its hash is kept.
"""

from collections.abc import Sequence
from hashlib import blake2b

import torch
from torch import Tensor

from moe_adapt.errors import UserError

__all__ = ["ENOUGH", "WHOLE", "class_keys"]

#: Examples per class on average, and ratio of variances, from which classes get means of their own. Both were
#: chosen on training rows of other seeds than those of the published comparison.
ENOUGH, RATIO = 6, 2.0
#: The class of examples that are not told apart.
WHOLE = 0


def class_keys(labels: Sequence[str | None] | None, features: Tensor) -> Tensor:
    """Return the class of every example as a number, int64 [n]; all `WHOLE` if labels are of no use.

    Args:
        labels: Label of each example; None where there is none.
        features: Features of the examples, [n, d].

    Raises:
        UserError: If there is not one label per example.

    >>> x = torch.tensor([[0.0], [1.0]]).repeat(6, 1)
    >>> class_keys(["a", "b"] * 6, x).unique().numel(), class_keys(["a"] * 6 + ["b"] * 6, x).unique().tolist()
    (2, [0])
    """
    count = len(features)
    whole = torch.full((count,), WHOLE, dtype=torch.int64)
    if labels is None:
        return whole
    if len(labels) != count:
        raise UserError(f"there are {len(labels)} labels for {count} examples; give one for each.")
    names = set(labels)
    if None in names or len(names) == 1 or count < ENOUGH * len(names):
        return whole
    keys = {name: _key(str(name)) for name in names}
    found = torch.tensor([keys[name] for name in labels], dtype=torch.int64)
    return found if _apart(features.detach().cpu().double(), found) else whole


def _key(label: str) -> int:
    return int.from_bytes(blake2b(label.encode(), digest_size=8).digest(), "big", signed=True)


def _apart(x: Tensor, keys: Tensor) -> bool:
    """Return whether the means of classes differ by more than their own error."""
    total, within = float((x - x.mean(dim=0)).square().sum()), 0.0
    classes = keys.unique()
    for key in classes:
        rows = x[keys == key]
        within += float((rows - rows.mean(dim=0)).square().sum())
    count = len(classes)
    return (total - within) * (len(x) - count) > RATIO * within * (count - 1)
