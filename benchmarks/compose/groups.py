"""Groups of tenants by cross-evaluation, with the library's finder: who is served well by whose expert.

`moe-adapt group` does the same over a data module; here the losses come from the upper half alone.
"""

from typing import Any

import numpy as np
import torch
from encoder import Cached

from moe_adapt.training.groups import agreement, cluster_losses

__all__ = ["agreement_of", "found_groups"]


@torch.no_grad()
def losses_of_all(pilot: Any, data: Cached, tenants: int) -> np.ndarray:
    """Return the mean loss of tenant `j`'s expert on the rows of tenant `i`, [T, T]."""
    pilot.eval()
    order = sorted(range(len(data)), key=lambda i: len(data.hidden[i]))
    own, found = torch.tensor(data.keys), torch.zeros(len(data), tenants)
    for start in range(0, len(order), 64):
        numbers = order[start : start + 64]
        part = data.take(numbers)
        for tenant in range(tenants):
            asked = Cached(part.rows, part.hidden, part.choices, (tenant,) * len(part))
            found[numbers, tenant] = asked.losses(pilot)
    return torch.stack([found[own == tenant].mean(dim=0) for tenant in range(tenants)]).double().numpy()


def found_groups(pilot: Any, data: Cached, tenants: int) -> tuple[list[int], dict[str, Any]]:
    """Return the group of every tenant, and what they were found from.

    Args:
        pilot: A model with an expert per tenant.
        data: Training rows with their tenants as keys.
        tenants: Number of tenants.
    """
    losses = losses_of_all(pilot, data, tenants)
    found = cluster_losses(losses)
    facts = {
        "losses": losses.round(4).tolist(),
        "silhouettes": found.silhouettes,
        "p_value": found.p_value,
    }
    return [int(label) for label in found.labels], facts


def agreement_of(found: list[int], truth: list[int]) -> float:
    """Return the adjusted Rand index of two groupings."""
    return agreement(np.array(found), np.array(truth))
