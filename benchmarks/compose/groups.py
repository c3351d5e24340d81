"""Groups of tenants by cross-evaluation: who is served well by whose expert.

A small expert per tenant is judged on the training rows of every other tenant. The symmetric mean loss is the
distance of two tenants; average linkage joins them, and the silhouette chooses how many groups there are.
"""

from typing import Any

import numpy as np
import torch
from encoder import Cached, losses
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from sklearn.metrics import adjusted_rand_score, silhouette_score

__all__ = ["agreement_of", "found_groups"]


@torch.no_grad()
def cross_losses(pilot: Any, data: Cached, tenants: int) -> np.ndarray:
    """Return the mean loss of tenant `j`'s rows under tenant `i`'s expert, [T, T]."""
    pilot.eval()
    order = sorted(range(len(data)), key=lambda i: len(data.hidden[i]))
    own, found = torch.tensor(data.keys), torch.zeros(tenants, len(data))
    for start in range(0, len(order), 64):
        numbers = order[start : start + 64]
        part = data.take(numbers)
        for tenant in range(tenants):
            asked = Cached(part.rows, part.hidden, part.choices, (tenant,) * len(part))
            found[tenant, numbers] = losses(pilot, asked)
    return np.stack([found[:, own == tenant].mean(dim=1).numpy() for tenant in range(tenants)], axis=1)


def found_groups(pilot: Any, data: Cached, tenants: int) -> list[int]:
    """Return the group of every tenant.

    Args:
        pilot: A model with an expert per tenant.
        data: Training rows with their tenants as keys.
        tenants: Number of tenants.
    """
    matrix = cross_losses(pilot, data, tenants)
    matrix = (matrix + matrix.T) / 2
    distance = matrix - matrix.min()
    np.fill_diagonal(distance, 0.0)
    tree = linkage(squareform(distance, checks=False), method="average")
    scores = {}
    for count in range(2, tenants):
        labels = fcluster(tree, count, criterion="maxclust")
        if 1 < len(set(labels)) < tenants:
            scores[count] = silhouette_score(distance, labels, metric="precomputed")
    best = max(scores, key=lambda count: scores[count])
    labels = fcluster(tree, best, criterion="maxclust")
    return [int(label) - 1 for label in labels]


def agreement_of(found: list[int], truth: list[int]) -> float:
    """Return the adjusted Rand index of two groupings."""
    return float(adjusted_rand_score(truth, found))
