"""Compare an adapter's configuration with the shapes in its file, before anything is built or allocated.

A configuration from elsewhere may be damaged, or ask for a billion experts. Every layer that it describes is
built without storage (meta device), and its tensors must be those of the file, by name and shape.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from moe_adapt.errors import UserError
from moe_adapt.routing.session import RoutingSession
from moe_adapt.tuner import RoutedLoraConfig
from moe_adapt.tuner.layer import RoutedLoraLayer, SiteSpec
from moe_adapt.tuner.peft_plugin import PREFIX
from moe_adapt.tuner.sample_config import SampleConfig
from moe_adapt.tuner.sample_tensors import HOLDER, sample_shapes

__all__ = ["check_layers"]

_ROOT = "base_model.model."
_NAME = "checked"
Shape = tuple[int, ...]


def check_layers(config: Mapping[str, Any], shapes: Mapping[str, Shape], folder: Path) -> None:
    """Check that configuration and file describe the same layers.

    Args:
        config: Content of ``adapter_config.json``.
        shapes: Shape of every tensor in the file.
        folder: The adapter's folder, for messages.

    Raises:
        UserError: If the configuration is damaged, or tensors are missing, unexpected or of another shape.
    """
    layers: dict[str, dict[str, Shape]] = {}
    for name, shape in shapes.items():
        site, mark, rest = name.removeprefix(_ROOT).partition(f".{PREFIX}")
        if mark:
            layers.setdefault(site, {})[PREFIX + rest] = shape
    try:
        known = {field.name for field in dataclasses.fields(RoutedLoraConfig)}
        settings = RoutedLoraConfig(**{key: value for key, value in config.items() if key in known})
        if not settings.sites:
            raise UserError("it names no layers.")
        sites = {site: _spec(values) for site, values in settings.sites.items()}
        _check_samples(settings, layers.pop(HOLDER, {}))
        expected = {site: _shapes(settings, sites[site], layers[site]) for site in sites if site in layers}
    except UserError as error:
        raise UserError(f"the configuration in {folder} cannot be used: {error}") from error
    except Exception as error:  # whatever a foreign file makes the constructors trip over
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"the configuration in {folder} is damaged ({reason[0].rstrip('.')}); export or download it "
            "again."
        ) from error
    differing = sorted(sites.keys() ^ layers.keys()) or sorted(
        f"{site}.{name}"
        for site in sites
        for name in expected[site].keys() | layers[site].keys()
        if expected[site].get(name) != layers[site].get(name)
    )
    if differing:
        raise UserError(
            f"configuration and weights in {folder} do not belong together ({len(differing)} differences, "
            f"such as {differing[0]!r}); export or download the adapter again."
        )


def _check_samples(config: RoutedLoraConfig, found: Mapping[str, Shape]) -> None:
    """Check the tensors of a sample router and of the experts' heads."""
    expected = {} if config.sample_router is None else sample_shapes(SampleConfig.of(config.sample_router))
    if expected != found:
        names = expected.keys() | found.keys()
        wrong = sorted(name for name in names if expected.get(name) != found.get(name))
        raise UserError(f"its sample router does not fit the weights (such as {wrong[0]!r}).")


def _spec(values: Mapping[str, Any]) -> SiteSpec:
    spec = SiteSpec(**values)
    for name in ("num_experts", "r", "frozen"):
        value = getattr(spec, name)
        if type(value) is not int or value < (name != "frozen"):
            raise UserError(f"{name} of a layer is {value!r}, a positive whole number is expected.")
    if spec.frozen > spec.num_experts:
        raise UserError(f"a layer has {spec.num_experts} experts and {spec.frozen} frozen ones.")
    if type(spec.alpha) not in (int, float) or not 0 < spec.alpha < float("inf"):
        raise UserError(f"alpha of a layer is {spec.alpha!r}, a positive number is expected.")
    if spec.order is not None and (
        len(spec.order) != spec.num_experts or sorted(spec.order) != list(range(spec.num_experts))
    ):
        raise UserError(f"the order of a layer's {spec.num_experts} experts is {spec.order!r}.")
    if spec.uids is not None and len(set(map(str, spec.uids))) != spec.num_experts:
        raise UserError(f"the names of a layer's {spec.num_experts} experts are {spec.uids!r}.")
    if spec.rows is not None and sorted(set(spec.rows)) != list(range(spec.num_experts)):
        raise UserError(f"the rows of a router belong to experts {spec.rows!r} of {spec.num_experts}.")
    if spec.origins is not None and (len(spec.origins) != spec.num_experts or not all(spec.origins)):
        raise UserError(f"the origins of a layer's {spec.num_experts} experts are {spec.origins!r}.")
    return spec


def _shapes(config: RoutedLoraConfig, spec: SiteSpec, found: Mapping[str, Shape]) -> dict[str, Shape]:
    """Return the shapes of the tensors that a layer would have."""
    inputs = next((shape[-1] for name, shape in found.items() if name.startswith(f"{PREFIX}A")), 1)
    outputs = next((shape[0] for name, shape in found.items() if name.startswith(f"{PREFIX}B")), 1)
    with torch.device("meta"):
        layer = RoutedLoraLayer(nn.Linear(inputs, outputs, bias=False), "", RoutingSession())
        layer.update_layer(_NAME, spec, config)
    state = layer.state_dict()
    return {
        name.removesuffix(f".{_NAME}"): tuple(tensor.shape)
        for name, tensor in state.items()
        if name.endswith(f".{_NAME}")
    }
