r"""Jensen-Shannon divergence between routing distributions: of groups of samples, or of two checkpoints.

$$\mathrm{JS}(p, q) = H\left(\tfrac{p + q}{2}\right) - \tfrac{1}{2} H(p) - \tfrac{1}{2} H(q)
\in [0, \log 2]$$

in nats. Low-entropy routers cannot be far apart in nats; dividing by $\sqrt{H(p) H(q)}$ makes sites of
different entropy comparable. That normaliser is ours: the one of "Multilingual Routing in
Mixture-of-Experts", where comparing groups site by site comes from, could not be verified.
"""

import torch
from torch import Tensor

__all__ = ["group_divergence", "group_profiles", "jensen_shannon"]


def _entropy(p: Tensor) -> Tensor:
    return torch.special.entr(p).sum(dim=-1)


def jensen_shannon(p: Tensor, q: Tensor, normalize: bool = False) -> Tensor:
    """Return the Jensen-Shannon divergence along the last axis, [...], in nats.

    Args:
        p: Distributions, [..., E].
        q: Distributions, [..., E].
        normalize: Divide by the geometric mean of the two entropies (0 where one of them is 0 and p = q,
            infinite where it is 0 and they differ).

    >>> jensen_shannon(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])).item()  # doctest: +ELLIPSIS
    0.6931...
    """
    p, q = p.to(torch.float64), q.to(torch.float64)
    halves = (_entropy(p) + _entropy(q)) / 2
    divergence = (_entropy((p + q) / 2) - halves).clamp(min=0)
    divergence = torch.where((p == q).all(dim=-1), torch.zeros_like(divergence), divergence)
    if normalize:
        scale = (_entropy(p) * _entropy(q)).sqrt()
        divergence = torch.where(divergence == 0, divergence, divergence / scale)
    return divergence.to(torch.float32)


def group_profiles(values: Tensor, groups: Tensor, num_groups: int) -> Tensor:
    """Return the mean of `values` over the tokens of each group, [G, E]; zeros for a group without tokens.

    Args:
        values: Probabilities, gates or a selection, [N, E].
        groups: Group of each token, [N]; negative ones belong to none.
        num_groups: Number of groups, `G`.

    >>> group_profiles(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]), torch.tensor([0, 0, 1]), 2)
    tensor([[0.5000, 0.5000],
            [1.0000, 0.0000]])
    """
    known = groups >= 0
    index = groups[known].to(torch.int64)
    totals = torch.zeros(num_groups, values.shape[1], dtype=torch.float64)
    totals.index_add_(0, index, values[known].to(torch.float64))
    counts = torch.bincount(index, minlength=num_groups).clamp(min=1)
    return (totals / counts[:, None]).to(torch.float32)


def group_divergence(profiles: Tensor, normalize: bool = False) -> Tensor:
    """Return the Jensen-Shannon divergence between every two groups, [G, G]; NaN for an empty group.

    Args:
        profiles: Profiles of groups, [G, E]; each is scaled to sum to one.
        normalize: See `jensen_shannon`.

    >>> group_divergence(torch.tensor([[0.5, 0.5], [2.0, 2.0]]))
    tensor([[0., 0.],
            [0., 0.]])
    """
    shares = profiles / profiles.sum(dim=-1, keepdim=True)
    matrix = jensen_shannon(shares[:, None], shares[None], normalize)
    empty = shares.isnan().any(dim=-1)
    return matrix.masked_fill(empty[:, None] | empty[None], float("nan"))
