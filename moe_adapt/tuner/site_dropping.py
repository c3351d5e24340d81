"""Which adapted layers does an adapter need, and what is it without the others?

A layer's necessity is how much a loss grows when the adapter is off there and on everywhere else. Dropping
takes the adapter off for good: the layer is the base's own again, and the configuration names the layers that
are left, so the smaller adapter is saved and opened like any other.

Dr.LLM trains a head that skips whole layers of the model for each input; an adapter can only leave layers of
the base as they are, once for all inputs.

Reference: Dr.LLM (notes); the measure is ours.
"""

from collections.abc import Callable, Collection
from typing import Any

import torch
from peft import PeftModel

from moe_adapt.errors import UserError
from moe_adapt.tuner.layer import adapted_layers
from moe_adapt.tuner.model import RoutedLoraModel

__all__ = ["drop_sites", "least_needed", "site_necessity"]


@torch.no_grad()
def site_necessity(
    tuner: RoutedLoraModel, loss: Callable[[], float], adapter_name: str | None = None
) -> dict[str, float]:
    """Return how much a loss grows without the adapter at each site, by the site's path.

    Args:
        tuner: The tuner, in evaluation mode.
        loss: Runs the model over rows that the adapter was not trained on; called once per site, and once.
        adapter_name: Name of the adapter; None takes the active one.
    """
    adapter = adapter_name or tuner.active_adapters[0]
    whole, found = loss(), {}
    for layer in adapted_layers(tuner.model):
        if adapter not in layer.specs:
            continue
        before, layer._disable_adapters = layer._disable_adapters, True
        try:
            found[layer.site] = loss() - whole
        finally:
            layer._disable_adapters = before
    return found


def least_needed(necessity: dict[str, float], share: float) -> list[str]:
    """Return the sites that are needed least.

    Args:
        necessity: What `site_necessity` returned.
        share: Share of the sites, from 0 on and below 1; rounded down.

    Raises:
        UserError: If it is no such share.

    >>> least_needed({"a": 0.5, "b": -0.1, "c": 0.2}, 0.7)
    ['b', 'c']
    """
    if not 0 <= share < 1:
        raise UserError(f"the share of layers to drop is from 0 to below 1, got {share}.")
    order = sorted(necessity, key=lambda site: (necessity[site], site))
    return order[: int(share * len(order))]


def drop_sites(model: PeftModel, sites: Collection[str], adapter_name: str | None = None) -> None:
    """Take an adapter off some layers for good.

    Args:
        model: The PEFT model, with this one adapter.
        sites: Paths of the layers.
        adapter_name: Name of the adapter; None takes the active one.

    Raises:
        UserError: If a layer is not adapted, none would be left, or it carries other adapters too.
    """
    tuner: Any = model.base_model
    adapter = adapter_name or tuner.active_adapters[0]
    layers = {layer.site: layer for layer in adapted_layers(tuner.model) if adapter in layer.specs}
    unknown = sorted(set(sites) - layers.keys())
    if unknown:
        raise UserError(f"there is no adapted layer {unknown[0]!r} to drop.")
    left = [site for site in layers if site not in set(sites)]
    if not left:
        raise UserError("dropping all adapted layers would leave no adapter; keep at least one.")
    if any(len(layers[site].specs) > 1 for site in sites):
        raise UserError("other adapters share the layers; drop them from a model with one adapter.")
    if not sites:
        return
    for site in sites:
        parent, _, name = site.rpartition(".")
        setattr(tuner.model.get_submodule(parent), name, layers[site].base_layer)
    config = model.peft_config[adapter]
    config.target_modules, config.exclude_modules = sorted(left), None  # type: ignore[attr-defined]
    config.layers_to_transform = config.layers_pattern = None  # type: ignore[attr-defined]
    config.sites = {site: config.sites[site] for site in left}  # type: ignore[attr-defined]
