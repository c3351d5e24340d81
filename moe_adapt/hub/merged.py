"""The mixture of an adapter as one low-rank change per layer: constant gates, or their means over data."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from peft import PeftModel
from torch import Tensor

from moe_adapt.errors import UserError
from moe_adapt.experts.conv import ConvGeometry
from moe_adapt.hub.calibration import constant_gates, mean_gates
from moe_adapt.hub.export_parts import Batches
from moe_adapt.hub.mixture import LowRank, concatenate, truncate
from moe_adapt.tuner.model import adapted_layers
from moe_adapt.tuner.moe_base import RoutedMoeExperts, RoutedMoeGate

__all__ = ["geometry_of", "merge_mixture", "routed_layers"]


def merge_mixture(
    model: PeftModel,
    adapter: str,
    *,
    calibration: Batches | None,
    run: Callable[[Any], Tensor],
    data_name: str | None,
    max_rank: int | None = None,
    for_peft: bool = True,
) -> tuple[dict[str, LowRank], dict[str, Any]]:
    """Return the change of each layer, and for ``export.json`` how it came about.

    Args:
        model: The model, in evaluation mode.
        adapter: Name of the adapter.
        calibration: Batches to average gates over; needed unless they are constant.
        run: Returns the logits of a batch.
        data_name: What the calibration's rows are called.
        max_rank: Layers of a larger rank are cut to this one; None keeps every layer exact.
        for_peft: Whether PEFT's LoRA is to read the result, so that its limits hold.

    Raises:
        UserError: If calibration is needed and missing, or the adapter has experts that no such change holds.
    """
    tuner: Any = model.base_model
    layers = routed_layers(model, adapter)
    record: dict[str, Any] = {"gates": "constant", "calibration": None}
    gates = constant_gates(tuner, adapter)
    if gates is None:
        if calibration is None:
            raise UserError(
                "the gates of this adapter depend on the token, so merging it needs calibration data to "
                "average them over; give calibration batches, or export another form."
            )
        found = mean_gates(tuner, adapter, calibration, run)
        gates = {site: value.mean for site, value in found.items()}
        tokens = max(value.tokens for value in found.values())
        record |= {"gates": "calibrated", "calibration": {"tokens": tokens, "data": data_name}}
        record["gate_std"] = {site: value.std.tolist() for site, value in found.items()}
    record["mean_gates"] = {site: value.tolist() for site, value in gates.items()}
    merged, errors = {}, {}
    for layer in layers:
        lora = concatenate(layer.bank(adapter).own_factors(), gates[layer.site])
        lora = replace(lora, geometry=geometry_of(layer) if for_peft else None)
        merged[layer.site], errors[layer.site] = truncate(lora, lora.rank if max_rank is None else max_rank)
    record |= {"errors": errors, "largest_error": max(errors.values())}
    return merged, record


def geometry_of(layer: Any) -> ConvGeometry | None:
    """Return what a convolution reads; None for a linear layer.

    Raises:
        UserError: If PEFT's LoRA would read other values.
    """
    geometry = getattr(layer, "geometry", None)
    if geometry is not None and not geometry.readable:
        raise UserError(
            f"{layer.site} is a convolution with dilation {geometry.dilation} and {geometry.mode!r} padding, "
            "which PEFT's LoRA does not copy from the base; export the routed adapter, or leave the layer "
            "out with exclude_modules."
        )
    return geometry


def routed_layers(model: PeftModel, adapter: str) -> list[Any]:
    """Return the layers that have experts of an adapter.

    Raises:
        UserError: If a base that is a mixture itself has experts of the adapter in its own experts or gates.
    """
    inside = [
        module.site
        for module in model.modules()
        if isinstance(module, RoutedMoeGate | RoutedMoeExperts) and adapter in module.specs
    ]
    if inside:
        raise UserError(
            f"the adapter has experts inside the base's own mixture ({len(inside)} modules, such as "
            f"{inside[0]!r}), which neither an ordinary LoRA nor one weight holds: export the form adapter."
        )
    return [layer for layer in adapted_layers(model) if adapter in layer.specs]
