"""How much each expert is used, from a trace."""

import torch
from torch import Tensor

from moe_adapt.evaluation.trace.record import RoutingTrace

__all__ = ["expert_use"]


def expert_use(trace: RoutingTrace) -> dict[str, Tensor]:
    """Return the sum of each expert's gates by the path of its site, float64 [E]; its visits are added up.

    Sums of gates and not of selections, since a router that mixes all experts selects every one of them.

    Args:
        trace: The trace.
    """
    found: dict[str, Tensor] = {}
    for name, site in trace.sites.items():
        path = name.partition("#")[0]
        gates = site.gates.double().clamp(min=0).sum(dim=0)
        found[path] = found.get(path, torch.zeros_like(gates)) + gates
    return found
