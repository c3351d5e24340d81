"""How much each expert is used on average: the constant gates that come nearest to a router."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from moe_adapt.errors import UserError
from moe_adapt.tuner import RoutedLoraModel
from moe_adapt.tuner.model import adapted_layers

__all__ = ["SiteGates", "constant_gates", "mean_gates"]


@dataclass(frozen=True)
class SiteGates:
    """The gates of one site over some tokens.

    Attributes:
        mean: Mean gate of each expert, [E]; a token that does not use the expert counts with zero.
        std: Standard deviation of the gates over tokens, [E].
        tokens: Number of unpadded tokens.
    """

    mean: Tensor
    std: Tensor
    tokens: int


def constant_gates(tuner: RoutedLoraModel, adapter: str) -> dict[str, Tensor] | None:
    """Return the gates [E] of every site if none depends on the token, else None.

    Args:
        tuner: The tuner.
        adapter: Name of the adapter.
    """
    found = {
        layer.site: layer.constant_gates(adapter)
        for layer in adapted_layers(tuner.model)
        if adapter in layer.specs
    }
    known = {site: gates for site, gates in found.items() if gates is not None}
    return known if len(known) == len(found) else None


def mean_gates(
    tuner: RoutedLoraModel, adapter: str, batches: Iterable[Any], run: Callable[[Any], Any]
) -> dict[str, SiteGates]:
    """Run batches in evaluation mode and return the gates that were used, per site.

    Args:
        tuner: The tuner.
        adapter: Name of the adapter.
        batches: The calibration batches.
        run: Runs one batch through the model.

    Raises:
        UserError: If there is no batch, or a site was not reached.
    """
    totals: dict[str, list[Any]] = {}
    session = tuner.hooks.session
    for batch in batches:
        with torch.inference_mode(), tuner.record():
            run(batch)
        assert session.context is not None
        for (name, site, _), record in session.context.records.items():
            if name != adapter:
                continue
            gates = record.gates if record.mask is None else record.gates[record.mask]
            gates = gates[:, : gates.shape[1] - record.nulls].double().cpu()
            old = totals.get(site, [0.0, 0.0, 0])
            totals[site] = [
                old[0] + gates.sum(dim=0),
                old[1] + gates.square().sum(dim=0),
                old[2] + len(gates),
            ]
    unreached = [
        layer.site
        for layer in adapted_layers(tuner.model)
        if adapter in layer.specs and not totals.get(layer.site, (0, 0, 0))[2]
    ]
    if unreached:
        raise UserError(
            f"{len(unreached)} adapted layers saw no token of the calibration data, such as "
            f"{unreached[0]!r}; calibrate with rows that reach every layer."
        )
    return {site: _summarise(*total) for site, total in totals.items()}


def _summarise(total: Tensor, squares: Tensor, tokens: int) -> SiteGates:
    mean = total / tokens
    return SiteGates(mean, (squares / tokens - mean.square()).clamp(min=0).sqrt(), tokens)
