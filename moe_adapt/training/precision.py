"""Trace a run over other precisions of its base, and compare with the base as it is.

Reference: EAQuant (notes), which looks at routers under quantisation; its smoothing is not here.
"""

from collections.abc import Sequence
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor, nn

from moe_adapt.errors import UserError
from moe_adapt.evaluation.trace.precision import Agreement, agreement, round_base
from moe_adapt.evaluation.trace.record import RoutingTrace
from moe_adapt.training.modules.base import AdaptedModule
from moe_adapt.tuner.peft_plugin import PREFIX
from moe_adapt.tuner.tracing import TraceRecorder

__all__ = ["base_layers", "compare_precisions"]


def base_layers(module: AdaptedModule) -> dict[str, Any]:
    """Return the frozen layers with a weight matrix: what a quantiser would round.

    Args:
        module: The module.
    """
    found: dict[str, Any] = {}
    for name, layer in module.model.named_modules():
        weight = getattr(layer, "weight", None)
        if not isinstance(weight, nn.Parameter) or weight.ndim < 2 or PREFIX in name:
            continue
        if not weight.requires_grad and not isinstance(layer, nn.Embedding) and weight.is_floating_point():
            found[name] = layer
    return found


def compare_precisions(
    module: AdaptedModule, batches: Sequence[Any], precisions: Sequence[str]
) -> dict[str, Agreement]:
    """Return the agreement of each precision of the base with the base as it is, which is put back.

    Args:
        module: The module, with its tuner.
        batches: Batches as the data modules of this package give them.
        precisions: Names (`moe_adapt.evaluation.trace.precision.PRECISIONS`).

    Raises:
        UserError: If the module has no tuner, or there are no batches.
    """
    if module.tuner is None:
        raise UserError("the run trained no adapter, so there is no routing to compare.")
    if not batches:
        raise UserError("there were no batches to compare on.")
    module.eval()
    layers = base_layers(module)
    kept = {name: layer.weight.detach().clone() for name, layer in layers.items()}
    reference = _observed(module, batches)
    found = {}
    for precision in precisions:
        try:
            round_base(layers, precision)
            found[precision] = agreement(reference, _observed(module, batches))
        finally:
            for name, layer in layers.items():
                layer.weight.data.copy_(kept[name])
    return found


def _observed(module: AdaptedModule, batches: Sequence[Any]) -> tuple[RoutingTrace, Tensor]:
    """Return the trace of batches, and the logits of each sample's answer: of its last token in a text."""
    tuner: Any = module.tuner
    recorder, logits = TraceRecorder(tuner), []
    for batch in batches:
        name = "input_ids" if "input_ids" in batch else "pixel_values"
        moved = move_data_to_device(batch, module.device)
        inputs = {key: moved[key] for key in (name, "attention_mask") if key in moved}
        with recorder.forward(batch[name], batch.get("attention_mask")):
            output = module.model(**inputs) if name == "input_ids" else module.model(moved[name])
        own = output if isinstance(output, Tensor) else output.logits
        logits.append((own[:, -1] if own.ndim == 3 else own).float().cpu())
    return recorder.trace(), torch.cat(logits)
