r"""Which group of experts a token belongs to, by its router scores: new, old or ambiguous.

With `c_new` and `c_old` the best scores in the newest and in the older groups of experts,

$$D = \frac{|c_{new} - c_{old}|}{\max(|c_{new}|, |c_{old}|)}, \qquad
\text{new}: D > \tau \wedge c_{new} > c_{old}, \quad
\text{old}: D > \tau \wedge c_{old} > c_{new}, \quad
\text{ambiguous}: D \le \tau,$$

and `D = 0` where both are zero. `D` changes when a constant is added to the scores, so it makes sense for
cosines only. A maximum over many old experts beats one over a few new ones by sheer number;
``task_mean_max``, which is not in the paper, takes the mean over old groups of each group's maximum
instead.

Reference:
    Zhao, Li, Lu, Gong, "On Token's Dilemma" (DyMoE), arXiv 2603.27481.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

__all__ = ["GroupScore", "TokenTypes", "group_scores", "relative_gap", "token_types"]

#: How the old groups are scored: published, or without the advantage of numbers.
GroupScore = Literal["max", "task_mean_max"]


class TokenTypes(NamedTuple):
    """The type of each token, bool [..., N] each; exactly one of the three holds.

    Attributes:
        new: It looks new.
        old: It looks old.
        ambiguous: Neither clearly.
    """

    new: Tensor
    old: Tensor
    ambiguous: Tensor


def relative_gap(new: Tensor, old: Tensor) -> Tensor:
    """Return `D`, the difference of two scores relative to the larger one; 0 where both are zero.

    Args:
        new: Best scores in the newest group, [..., N].
        old: Best scores in the older ones, [..., N].

    >>> relative_gap(torch.tensor([0.8, -0.1, 0.0]), torch.tensor([0.4, -0.4, 0.0]))
    tensor([0.5000, 0.7500, 0.0000])
    """
    largest = torch.maximum(new.abs(), old.abs())
    gap = (new - old).abs()
    return torch.where(largest > 0, gap / largest.clamp(min=torch.finfo(new.dtype).tiny), 0.0)


def group_scores(
    scores: Tensor, groups: Tensor, group_score: GroupScore = "max"
) -> tuple[Tensor, Tensor] | None:
    """Return the best score among the newest and among the older experts, [..., N] each.

    Args:
        scores: Raw scores, [..., N, E].
        groups: Group of each expert, int [E]; the largest number is the newest.
        group_score: How the old groups are scored.

    Returns:
        The two scores, or None if there is one group only.
    """
    newest = groups == groups.max()
    if bool(newest.all()):
        return None
    new = scores[..., newest].amax(-1)
    if group_score == "max":
        return new, scores[..., ~newest].amax(-1)
    maxima = [scores[..., groups == group].amax(-1) for group in groups[~newest].unique()]
    return new, torch.stack(maxima).mean(0)


def token_types(new: Tensor, old: Tensor, tau: float) -> TokenTypes:
    """Sort tokens by their group scores.

    Args:
        new: Best scores in the newest group, [..., N].
        old: Best scores in the older ones, [..., N].
        tau: Least relative gap of a clear case.

    >>> types = token_types(torch.tensor([0.52, 0.8, 0.4]), torch.tensor([0.50, 0.4, 0.8]), tau=0.2)
    >>> types.new.tolist(), types.old.tolist()
    ([False, True, False], [False, False, True])
    """
    clear = relative_gap(new, old) > tau
    return TokenTypes(clear & (new > old), clear & (old > new), ~clear)
