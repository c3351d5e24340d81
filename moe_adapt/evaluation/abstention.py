r"""When to give no answer: the input is far from all that is known, or the experts contradict each other.

Prototypes are the means of known rows of each class, taken from a random half; the other half calibrates.
With the coverage gap `G` and the disagreement `D` of `moe_adapt.evaluation.novelty`, the novelty of a row is

$$s(x) = 1 - \min(p_G(x), p_D(x)), \qquad p(x) = \frac{1 + \#\{i: v_i \ge v(x)\}}{n + 1}$$

over the calibration rows: no specialist, or the wrong one. Rows above the quantile of `s` that known rows
reach with the probability `share` get no answer, so known rows lose about that share of their answers.

Reference: "Transitive Expert Error", of which only the abstract was available; the formulas are ours.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from moe_adapt.errors import UserError
from moe_adapt.evaluation.novelty import coverage_gap
from moe_adapt.evaluation.novelty_watch import halves, upper_rank

__all__ = ["Abstention", "auroc"]


class Abstention(NamedTuple):
    """What known rows are like.

    Attributes:
        prototypes: Mean features of each class, [P, d].
        gaps: Coverage gaps of the calibration rows, [n].
        disagreements: Disagreement of the experts on them, [n]; None where it is not used.
        cut: Novelty above which no answer is given.
    """

    prototypes: Tensor
    gaps: Tensor
    disagreements: Tensor | None
    cut: float

    @classmethod
    def fit(
        cls, features: Tensor, classes: Tensor, disagreements: Tensor | None = None, share: float = 0.05
    ) -> "Abstention":
        """Learn from known rows.

        Args:
            features: [N, d].
            classes: Class of each row, int [N], labelled or predicted.
            disagreements: [N]; None leaves them out.
            share: Share of known rows that may lose their answer. Higher: more of what is unknown is caught.

        Raises:
            UserError: If there are fewer than 20 rows, or `share` is no share.
        """
        if len(features) < 20:
            raise UserError(f"to know what is known takes 20 rows or more, got {len(features)}.")
        if not 0 < share < 1:
            raise UserError(f"the share of known rows without an answer lies between 0 and 1, got {share}.")
        one, other = halves(len(features))
        second, own = features[other].float(), classes[one]
        directions = F.normalize(features[one].float(), dim=-1)
        prototypes = torch.stack([directions[own == c].mean(dim=0) for c in own.unique()])
        held = None if disagreements is None else disagreements[other]
        fitted = cls(prototypes, coverage_gap(second, prototypes), held, 1.0)
        scores = fitted.novelty(second, held)
        return fitted._replace(cut=float(scores.quantile(1 - share, interpolation="higher")))

    def novelty(self, features: Tensor, disagreements: Tensor | None = None) -> Tensor:
        """Return how rare each row would be among known ones, [N], in [0, 1); high: new.

        Args:
            features: [N, d].
            disagreements: [N], if they were there when it was fitted.
        """
        rank = upper_rank(coverage_gap(features.float(), self.prototypes), self.gaps)
        if self.disagreements is not None and disagreements is not None:
            rank = torch.minimum(rank, upper_rank(disagreements, self.disagreements))
        return 1 - rank


def auroc(new: Tensor, known: Tensor) -> float:
    """Return the probability that a new row scores higher than a known one; ties count half.

    Args:
        new: Scores of rows that should be high, [N].
        known: Scores of the others, [M].

    Raises:
        UserError: If one of them is empty.

    >>> auroc(torch.tensor([2.0, 3.0]), torch.tensor([1.0, 2.0]))
    0.875
    """
    if not len(new) or not len(known):
        raise UserError("an AUROC needs rows of both kinds.")
    ordered = known.double().sort().values
    below = torch.searchsorted(ordered, new.double().contiguous())
    not_above = torch.searchsorted(ordered, new.double().contiguous(), right=True)
    return float((below + not_above).double().mean() / (2 * len(known)))
