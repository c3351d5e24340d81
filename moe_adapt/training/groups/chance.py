r"""Whether chance gives groups as good: what members' levels leave of the distances is shuffled.

A member whose expert is poor, or whose rows are hard, is far from everybody. So least squares fit
$D_{ij} \approx m + a_i + a_j$ to the pairs. The rests $R_{ij} = D_{ij} - m - a_i - a_j$ of members of one
group are below 0. Two numbers say how well groups $g$ explain the rests:

* signed modularity, $Q = -\sum_{i<j,\, g_i = g_j} R_{ij} / \lVert R \rVert$, which finds few large groups
  in much noise, and overlooks many small ones;
* the correlation $z$ of $R_{ij}$ with $g_i \ne g_j$, which finds small groups as well.

Groups are the cuts of average linkage over the rests; that of the largest `Q` is improved by moving single
members. The largest `Q` and `z` are compared with those of shuffles: $m + a_i + a_j$ plus rests in another
order, fitted anew. Each is counted in standard deviations of the shuffles, and the larger one is taken.
Shuffles have smaller rests than what they were made of, because they are fitted once more. So `Q` and `z` do
not depend on the scale: numbers that do, silhouettes among them, exceed those of shuffles too often.

Reference: Newman, "Modularity and community structure in networks", PNAS 103 (2006); Gomez, Jensen, Arenas,
"Analysis of community structure in networks of correlated data", Physical Review E 80 (2009). A correlation
as an index of groups: Milligan, Cooper, "An examination of procedures for determining the number of
clusters in a data set", Psychometrika 50 (1985). That both are taken together, and the test, are ours.
"""

import numpy as np
from scipy.cluster.hierarchy import average, cut_tree
from scipy.spatial.distance import squareform

__all__ = ["by_chance", "correlation", "cuts_of", "fit_levels", "modular_groups"]

_SHUFFLES = 199


def cuts_of(distances: np.ndarray) -> np.ndarray:
    """Return the groups of average linkage, [T, T]: column `k` has `k + 1` of them, numbered anyhow.

    Args:
        distances: Between members, [T, T].
    """
    return cut_tree(average(squareform(distances, checks=False)))[:, ::-1]


def fit_levels(distances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the least-squares fit of a level for each member, and the rests; both [T, T], diagonals 0.

    Args:
        distances: Between members, [T, T], `T >= 3`.

    >>> fitted, rests = fit_levels(np.array([[0, 3, 4, 6], [3, 0, 5, 7], [4, 5, 0, 8], [6, 7, 8, 0]]))
    >>> float(np.abs(rests).max())
    0.0
    """
    size = len(distances)
    sums = distances.sum(axis=1)
    level = sums.sum() / (size * (size - 1))
    own = (sums - (size - 1) * level) / (size - 2)
    fitted = level + own[:, None] + own
    np.fill_diagonal(fitted, 0.0)
    rests = distances - fitted
    rests[np.abs(rests) < 1e-12 * max(level, 1e-300)] = 0.0
    return fitted, rests


def correlation(rests: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the correlation of rests with being in different groups, [G]; 0 if all pairs are alike in that.

    Args:
        rests: Of distances, [T, T].
        labels: Group of each member in each of several ways to group them, [T, G].

    >>> blocks = 1 - np.kron(np.eye(2), np.ones((2, 2)))
    >>> correlation(blocks, np.array([[0, 0], [0, 0], [1, 0], [1, 0]])).round(9).tolist()
    [1.0, 0.0]
    """
    first, second = np.triu_indices(len(rests), 1)
    apart, values = labels[first] != labels[second], rests[first, second]  # [P, G], [P]
    share = apart.mean(axis=0)
    scale = np.sqrt(share * (1 - share)) * values.std()
    moment = (values - values.mean()) @ apart / len(values)
    return np.divide(moment, scale, out=np.zeros_like(share), where=scale > 0)


def by_chance(distances: np.ndarray, shuffles: int = _SHUFFLES) -> float:
    """Return how often members of the same levels, but without groups, have groups that explain as much.

    Args:
        distances: Between members, [T, T], `T >= 4`.
        shuffles: How often rests are dealt out anew.

    >>> by_chance(1 - np.kron(np.eye(3), np.ones((4, 4))), shuffles=19)
    0.05
    """
    fitted, rests = fit_levels(distances)
    upper = np.triu_indices(len(distances), 1)
    rng, dealt = np.random.default_rng(0), []
    for _ in range(shuffles):
        shuffled = squareform(np.clip(fitted[upper] + rng.permutation(rests[upper]), 0.0, None))
        dealt.append(_strength(fit_levels(shuffled)[1]))
    chance = np.array(dealt)  # [shuffles, 2]
    middle, spread = chance.mean(axis=0), np.maximum(chance.std(axis=0), 1e-12)
    excess = ((chance - middle) / spread).max(axis=1)
    observed = ((_strength(rests) - middle) / spread).max()
    return float((1 + (excess >= observed - 1e-9).sum()) / (shuffles + 1))


def modular_groups(distances: np.ndarray) -> np.ndarray:
    """Return the groups of the largest signed modularity that is found, [T], numbered anyhow.

    Args:
        distances: Between members, [T, T], `T >= 4`.
    """
    rests = fit_levels(distances)[1]
    return _most_modular(rests, _cuts_of_rests(rests))


def _strength(rests: np.ndarray) -> np.ndarray:
    """Return the largest modularity and the largest correlation, [2]."""
    cuts = _cuts_of_rests(rests)
    modular = _most_modular(rests, cuts)
    norm = max(float(np.linalg.norm(rests)), 1e-300)
    return np.array([-_within(rests, modular[:, None])[0] / norm, correlation(rests, cuts).max()])


def _cuts_of_rests(rests: np.ndarray) -> np.ndarray:
    shifted = rests - rests.min()
    np.fill_diagonal(shifted, 0.0)
    return cuts_of(shifted)


def _most_modular(rests: np.ndarray, cuts: np.ndarray) -> np.ndarray:
    return _moved(rests, cuts[:, _within(rests, cuts).argmin()])


def _within(rests: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the sum of rests of pairs in one group, [G], for several ways to group members, [T, G]."""
    first, second = np.triu_indices(len(rests), 1)
    return rests[first, second] @ (labels[first] == labels[second])


def _moved(rests: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Move one member at a time to where the sum within groups falls most, a group of its own among them."""
    rows = np.arange(len(labels))
    labels = np.unique(labels, return_inverse=True)[1]
    for _ in range(10 * len(labels)):
        sums = rests @ np.eye(labels.max() + 2)[labels]  # [T, G + 1]: the last group is empty
        gains = sums[rows, labels][:, None] - sums
        member, group = np.unravel_index(gains.argmax(), gains.shape)
        if gains[member, group] <= 1e-12:
            break
        labels = np.unique(np.where(rows == member, group, labels), return_inverse=True)[1]
    return labels
