r"""What members' levels do not explain of their distances: groups in it, and whether chance would give them.

A member whose expert is poor, or whose rows are hard, is far from everybody. So least squares fit
$D_{ij} \approx m + a_i + a_j$ to the pairs. The rests $R_{ij} = D_{ij} - m - a_i - a_j$ of members of one
group are below 0. Two numbers say how well groups $g$ explain the rests:

* signed modularity, $Q = -\sum_{i<j,\, g_i = g_j} R_{ij} / \lVert R \rVert$, which finds few large groups
  in much noise, and merges many small ones;
* the correlation $z$ of $R_{ij}$ with $g_i \ne g_j$, which finds small groups as well.

Neither depends on the scale. `sharpest` gives the groups of the largest $z$: it begins with some groups and
moves single members while it lowers $\sum_{g_i = g_j} (R_{ij} - \theta)$, with $\theta$ half-way between the
mean rest within groups and between them. `by_chance` compares the largest $Q$ and $z$ with those of shuffles,
$m + a_i + a_j$ plus rests in another order, fitted anew; each in standard deviations of the shuffles, and the
larger one counts. Shuffles have smaller rests than what they were made of, because they are fitted once more;
so numbers that depend on the scale would exceed them too often.

Reference: Newman, "Modularity and community structure in networks", PNAS 103 (2006); Gomez, Jensen, Arenas,
"Analysis of community structure in networks of correlated data", Physical Review E 80 (2009). A correlation
as an index of groups: Milligan, Cooper, "An examination of procedures for determining the number of
clusters", Psychometrika 50 (1985).
That both are taken together, and the test, are ours.
"""

from collections.abc import Iterable

import numpy as np
from scipy.cluster.hierarchy import average
from scipy.spatial.distance import squareform

__all__ = ["by_chance", "correlation", "cuts_of", "fit_levels", "in_order", "sharpest"]

_SHUFFLES = 199


def cuts_of(distances: np.ndarray) -> np.ndarray:
    """Return the groups of average linkage, [T, T]: column `k` has `k + 1` of them, numbered anyhow.

    Args:
        distances: Between members, [T, T].
    """
    labels = np.arange(len(distances))
    cuts = [labels]
    for step, (first, second, *_) in enumerate(average(squareform(distances, checks=False))):
        labels = np.where((labels == first) | (labels == second), len(distances) + step, labels)
        cuts.append(labels)
    return np.stack(cuts[::-1], axis=1)


def in_order(labels: np.ndarray) -> np.ndarray:
    """Return groups numbered by their first members.

    >>> in_order(np.array([5, 2, 5])).tolist()
    [0, 1, 0]
    """
    first: dict[int, int] = {}
    return np.array([first.setdefault(int(label), len(first)) for label in labels])


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


def sharpest(distances: np.ndarray, starts: Iterable[np.ndarray]) -> np.ndarray:
    """Return the groups of the largest correlation, numbered by their first members.

    Args:
        distances: Between members, [T, T].
        starts: Groups to begin with, [T] each, beside those that the rests themselves speak for.
    """
    rests = fit_levels(distances)[1]
    _, modular, cut = _strength(rests)
    found = np.stack([_with_threshold(rests, labels) for labels in (*starts, cut, modular)], axis=1)
    return in_order(found[:, correlation(rests, found).argmax()])


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
        dealt.append(_strength(fit_levels(shuffled)[1])[0])
    chance = np.array(dealt)  # [shuffles, 2]
    middle, spread = chance.mean(axis=0), np.maximum(chance.std(axis=0), 1e-12)
    excess = ((chance - middle) / spread).max(axis=1)
    observed = ((_strength(rests)[0] - middle) / spread).max()
    return float((1 + (excess >= observed - 1e-9).sum()) / (shuffles + 1))


def _strength(rests: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the largest modularity and correlation, and the groups of each."""
    shifted = rests - rests.min()
    np.fill_diagonal(shifted, 0.0)
    cuts = cuts_of(shifted)
    scores = correlation(rests, cuts)
    modular = _moved(rests, cuts[:, _within(rests, cuts).argmin()])
    norm = max(float(np.linalg.norm(rests)), 1e-300)
    most = -_within(rests, modular[:, None])[0] / norm
    return np.array([most, scores.max()]), modular, cuts[:, scores.argmax()]


def _within(rests: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the sum of rests of pairs in one group, [G], for several ways to group members, [T, G]."""
    first, second = np.triu_indices(len(rests), 1)
    return rests[first, second] @ (labels[first] == labels[second])


def _moved(rests: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Move one member at a time to where the sum within groups falls most, a group of its own among them."""
    rows = np.arange(len(labels))
    for _ in range(10 * len(labels)):
        sums = rests @ np.eye(labels.max() + 2)[labels]  # [T, G + 1]: the last group is empty
        gains = sums[rows, labels][:, None] - sums
        member, group = np.unravel_index(gains.argmax(), gains.shape)
        if gains[member, group] <= 1e-12:
            break
        labels = np.where(rows == member, group, labels)
        labels = np.unique(labels, return_inverse=True)[1]
    return labels


def _with_threshold(rests: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Move members while the correlation grows, above and below a threshold that follows."""
    first, second = np.triu_indices(len(rests), 1)
    values = rests[first, second]
    while True:
        same = labels[first] == labels[second]
        if same.all() or not same.any():
            return labels
        lowered = rests - (values[same].mean() + values[~same].mean()) / 2
        np.fill_diagonal(lowered, 0.0)
        moved = _moved(lowered, labels)
        before, after = correlation(rests, np.stack([labels, moved], axis=1))
        if after <= before + 1e-12:
            return labels
        labels = moved
