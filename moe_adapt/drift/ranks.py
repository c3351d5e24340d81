r"""Do methods differ over many streams? Average ranks, Friedman's test, Nemenyi's critical difference.

Every stream ranks the methods (1 is best, equals share the mean rank). With \(k\) methods on \(N\) streams
and average ranks \(R_j\), \[ \chi^2_F = \frac{12 N}{k (k + 1)} \Big(\sum_j R_j^2 - \tfrac{k (k +
1)^2}{4}\Big), \qquad
   CD = q_{0.05} \sqrt{\tfrac{k (k + 1)}{6 N}} . \]
Two methods differ if their average ranks are more than \(CD\) apart.

Reference: Demsar, Statistical Comparisons of Classifiers over Multiple Data Sets, JMLR 2006.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from moe_adapt.errors import UserError

__all__ = ["Ranking", "rank_methods"]


@dataclass(frozen=True)
class Ranking:
    """Average ranks.

    Attributes:
        ranks: Average rank by method, best first.
        p_value: Of Friedman's test that all methods are alike; nan for fewer than three methods or two
            streams.
        critical_difference: Nemenyi's, at 5 %; nan where it is not defined.
        streams: How many streams it is over.
    """

    ranks: dict[str, float]
    p_value: float
    critical_difference: float
    streams: int


def rank_methods(scores: Mapping[str, Sequence[float]]) -> Ranking:
    """Rank methods by scores of which larger is better.

    Args:
        scores: Method -> score on each stream, all of one length.

    Raises:
        UserError: If there is no score, or a method lacks some.

    >>> rank_methods({"a": [0.9, 0.8], "b": [0.7, 0.8]}).ranks
    {'a': 1.25, 'b': 1.75}
    """
    from scipy.stats import chi2, rankdata, studentized_range

    lengths = {len(values) for values in scores.values()}
    if len(lengths) != 1 or lengths == {0}:
        raise UserError("ranks need the same streams, at least one, for every method.")
    table = np.array(list(scores.values()))  # [k, N]
    k, n = table.shape
    ranks = rankdata(-table, axis=0).mean(axis=1)
    order = np.argsort(ranks, kind="stable")
    names = list(scores)
    p_value = difference = float("nan")
    if k > 2 and n > 1:
        statistic = 12 * n / (k * (k + 1)) * ((ranks**2).sum() - k * (k + 1) ** 2 / 4)
        p_value = float(chi2.sf(statistic, k - 1))
        quantile = studentized_range.ppf(0.95, k, np.inf) / np.sqrt(2)
        difference = float(quantile * np.sqrt(k * (k + 1) / (6 * n)))
    return Ranking({names[i]: float(ranks[i]) for i in order}, p_value, difference, n)
