r"""From a matrix of losses to groups: average linkage, their number by silhouette, one if none stand out.

With the loss `L[i, j]` of expert `j` on the training rows of member `i`, two members are as far apart as each
loses by the other's expert, on average:

$$D_{ij} = \tfrac12 \max(L_{ij} - L_{ii}, 0) + \tfrac12 \max(L_{ji} - L_{jj}, 0), \qquad D_{ii} = 0.$$

The subtraction takes out that some members' rows are harder. Average linkage joins the two nearest groups
again and again. Of the numbers of groups from 2 to `T - 1`, that of the largest mean silhouette is taken,
$s_i = (b_i - a_i) / \max(a_i, b_i)$: the mean distance to the nearest other group against that to one's own.
A silhouette says nothing about one group or `T` of them. So with `ENOUGH` members or more there is one group
if chance gives groups as good in more than 5 % of shuffles (`chance`). Average linkage begins with single
noisy pairs, so the groups of the largest modularity stand in for its own if their silhouette is larger.
`T` groups are never found; they and one can be asked for.

Reference: Rousseeuw, "Silhouettes: a graphical aid to the interpretation and validation of cluster analysis",
Journal of Computational and Applied Mathematics 20 (1987).
"""

from dataclasses import dataclass

import numpy as np

from moe_adapt.errors import UserError
from moe_adapt.training.groups.chance import by_chance, cuts_of, modular_groups

__all__ = ["ENOUGH", "LEVEL", "Clusters", "agreement", "cluster_losses", "distances_of", "silhouettes"]

#: Members from which on groups are compared with chance; fewer have too few pairs to shuffle.
ENOUGH = 8
#: Share of shuffles that may have groups as good.
LEVEL = 0.05


@dataclass(frozen=True)
class Clusters:
    """Groups of the members of a matrix.

    Attributes:
        labels: Group of each member, [T]; numbered by their first members.
        silhouettes: Mean silhouette of every number of groups that was judged.
        distances: Between members, [T, T].
        p_value: How often chance gives groups as good; None if it was not asked.
    """

    labels: np.ndarray
    silhouettes: dict[int, float]
    distances: np.ndarray
    p_value: float | None = None

    @property
    def count(self) -> int:
        """Number of groups."""
        return int(self.labels.max()) + 1


def distances_of(losses: np.ndarray) -> np.ndarray:
    """Return how far members are apart, [T, T].

    Args:
        losses: Loss of each expert (column) on each member's rows (row), [T, T].

    Raises:
        UserError: If it is no square matrix of finite numbers.

    >>> distances_of(np.array([[0.1, 0.5], [0.9, 0.3]])).round(3).tolist()
    [[0.0, 0.5], [0.5, 0.0]]
    """
    losses = np.asarray(losses, dtype=float)
    if losses.ndim != 2 or losses.shape[0] != losses.shape[1]:
        raise UserError(f"losses are a square matrix, members by experts, got the shape {losses.shape}.")
    if not np.isfinite(losses).all():
        raise UserError("a loss is not finite; lower the learning rate of the small experts.")
    excess = np.clip(losses - np.diag(losses)[:, None], 0.0, None)
    return (excess + excess.T) / 2


def silhouettes(distances: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the silhouette of each member, [T]; 0 for one that is alone in its group.

    Args:
        distances: Between members, [T, T].
        labels: Group of each member, [T], at least two groups.

    >>> silhouettes(np.array([[0, 1, 4], [1, 0, 4], [4, 4, 0.0]]), np.array([0, 0, 1])).tolist()
    [0.75, 0.75, 0.0]
    """
    members = np.eye(labels.max() + 1)[labels]  # [T, G]
    sizes = members.sum(axis=0)
    sums = distances @ members
    rows = np.arange(len(labels))
    own = sums[rows, labels] / np.maximum(sizes[labels] - 1, 1)
    others = sums / sizes
    others[rows, labels] = np.inf
    nearest = others.min(axis=1)
    widest = np.maximum(own, nearest)
    found = np.divide(nearest - own, widest, out=np.zeros_like(own), where=widest > 0)
    return np.where(sizes[labels] > 1, found, 0.0)


def cluster_losses(losses: np.ndarray, count: int | None = None) -> Clusters:
    """Return the groups of the members of a matrix of losses.

    Args:
        losses: Loss of each expert (column) on each member's rows (row), [T, T].
        count: Number of groups; None takes that of the largest mean silhouette, or one if chance gives groups
            as good.

    Raises:
        UserError: If there are too few members to choose, or no such number of groups.
    """
    distances = distances_of(losses)
    size = len(distances)
    if size < 2:
        raise UserError(f"groups need at least two members, and there is {size}.")
    if count is not None and not 1 <= count <= size:
        raise UserError(f"{size} members make 1 to {size} groups, not {count}.")
    if count is None and size < 3:
        raise UserError("two members are too few to choose a number of groups: say 1 or 2.")
    cuts = {k + 1: _in_order(labels) for k, labels in enumerate(cuts_of(distances).T)}
    scores = {k: float(silhouettes(distances, cuts[k]).mean()) for k in range(2, size)}
    if count is not None:
        return Clusters(cuts[count], scores, distances)
    p_value = by_chance(distances) if size >= ENOUGH else None
    if p_value is not None:
        labels = _in_order(modular_groups(distances))
        number = int(labels.max()) + 1
        score = float(silhouettes(distances, labels).mean()) if 1 < number < size else -1.0
        if score > scores.get(number, 0.0):
            cuts[number], scores[number] = labels, score
    best = max(scores, key=lambda k: scores[k])
    if p_value is not None and p_value > LEVEL:
        best = 1
    return Clusters(cuts[best], scores, distances, p_value)


def _in_order(labels: np.ndarray) -> np.ndarray:
    """Return groups numbered by their first members."""
    first: dict[int, int] = {}
    return np.array([first.setdefault(int(label), len(first)) for label in labels])


def agreement(labels: np.ndarray, truth: np.ndarray) -> float:
    """Return the adjusted Rand index of two groupings: 1 if they are the same, 0 as by chance.

    >>> agreement(np.array([0, 0, 1, 1]), np.array([5, 5, 2, 2]))
    1.0
    """
    _, first = np.unique(labels, return_inverse=True)
    _, second = np.unique(truth, return_inverse=True)
    both = np.zeros((first.max() + 1, second.max() + 1))
    np.add.at(both, (first, second), 1)
    together, alike, true = (_pairs(n) for n in (both, both.sum(axis=1), both.sum(axis=0)))
    expected = alike * true / max(_pairs(np.array(len(labels))), 1.0)
    most = (alike + true) / 2
    return 1.0 if most == expected else float((together - expected) / (most - expected))


def _pairs(counts: np.ndarray) -> float:
    return float((counts * (counts - 1) / 2).sum())
