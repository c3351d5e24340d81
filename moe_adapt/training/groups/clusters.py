r"""From a matrix of losses to groups: average linkage, their number by silhouette, one if none stand out.

With the loss `L[i, j]` of expert `j` on the training rows of member `i`, two members are as far apart as each
loses by the other's expert, on average:

$$D_{ij} = \tfrac12 \max(L_{ij} - L_{ii}, 0) + \tfrac12 \max(L_{ji} - L_{jj}, 0), \qquad D_{ii} = 0.$$

The subtraction takes out that some members' rows are harder. Average linkage joins the two nearest groups
again and again. Of the numbers of groups from 2 to `T - 1`, that of the largest mean silhouette is taken,
$s_i = (b_i - a_i) / \max(a_i, b_i)$: the mean distance to the nearest other group against that to one's own.
A silhouette says nothing about one group or `T` of them. So with `ENOUGH` members or more it is compared with
what members without groups give: distances $m + a_i + a_j + e_{ij}$, where some members are far from all,
are fitted, and their rests `e` are shuffled among pairs. Small groups get large silhouettes by chance, so
each number of groups is judged against shuffles cut into as many, in standard deviations; the largest excess
counts, as it does in each shuffle. If 5 % of the shuffles reach it, there is one group. `T` groups are never
found; both can be asked for.

Reference: Rousseeuw, "Silhouettes: a graphical aid to the interpretation and validation of cluster analysis",
Journal of Computational and Applied Mathematics 20 (1987).
"""

from dataclasses import dataclass

import numpy as np
from scipy.cluster.hierarchy import average, cut_tree
from scipy.spatial.distance import squareform

from moe_adapt.errors import UserError

__all__ = ["ENOUGH", "Clusters", "agreement", "by_chance", "cluster_losses", "distances_of", "silhouettes"]

#: Members from which on groups are compared with chance; fewer have too few pairs to shuffle.
ENOUGH = 8
_SHUFFLES, _LEVEL = 99, 0.05


@dataclass(frozen=True)
class Clusters:
    """Groups of the members of a matrix.

    Attributes:
        labels: Group of each member, [T]; numbered by their first members.
        silhouettes: Mean silhouette of every number of groups that was judged.
        distances: Between members, [T, T].
        p_value: How often shuffled distances stand out as much; None if they were not compared.
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
        count: Number of groups; None takes that of the largest mean silhouette, or one if shuffled distances
            stand out as much.

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
    cuts, scores = _cuts(distances)
    if count is not None:
        return Clusters(cuts[count], scores, distances)
    best = max(scores, key=lambda k: scores[k])
    p_value = by_chance(distances, scores) if size >= ENOUGH else None
    if p_value is not None and p_value > _LEVEL:
        best = 1
    return Clusters(cuts[best], scores, distances, p_value)


def _cuts(distances: np.ndarray) -> tuple[dict[int, np.ndarray], dict[int, float]]:
    """Return the groups for every number of them, and the mean silhouettes of those that have one."""
    size = len(distances)
    tree = average(squareform(distances, checks=False))
    levels = cut_tree(tree)  # [T, T]: as many groups as members first, one last
    cuts = {k: _in_order(levels[:, size - k]) for k in range(1, size + 1)}
    return cuts, {k: float(silhouettes(distances, cuts[k]).mean()) for k in range(2, size)}


def by_chance(distances: np.ndarray, scores: dict[int, float], shuffles: int = _SHUFFLES) -> float:
    """Return how often members as unlike each other as these, but without groups, stand out as much.

    Args:
        distances: Between members, [T, T], `T >= 3`.
        scores: Their mean silhouette for every number of groups.
        shuffles: How often rests are dealt out anew.

    >>> blocks = 1 - np.kron(np.eye(3), np.ones((4, 4)))
    >>> by_chance(blocks, {2: 0.5, 3: 1.0}, shuffles=19)
    0.05
    """
    size = len(distances)
    sums = distances.sum(axis=1)
    level = sums.sum() / (size * (size - 1))
    own = (sums - (size - 1) * level) / (size - 2)
    upper = np.triu_indices(size, 1)
    fitted = level + own[upper[0]] + own[upper[1]]
    rests = distances[upper] - fitted
    rng, dealt = np.random.default_rng(0), []
    for _ in range(shuffles):
        shuffled = squareform(np.clip(fitted + rng.permutation(rests), 0.0, None))
        found = _cuts(shuffled)[1]
        dealt.append([found[count] for count in scores])
    chance = np.array(dealt)  # [shuffles, numbers of groups]
    middle, spread = chance.mean(axis=0), np.maximum(chance.std(axis=0), 1e-12)
    excess = ((chance - middle) / spread).max(axis=1)
    observed = ((np.array(list(scores.values())) - middle) / spread).max()
    return float((1 + (excess >= observed).sum()) / (shuffles + 1))


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
