"""Bases whose weights are stored quantised: which layers those are, and adding a change to their weight.

The mixture needs the output of a base layer and never its weight, so any quantised linear layer that can be
called may be adapted. Merging has to rewrite the weight: bitsandbytes' layers are dequantised, changed and
quantised again, as PEFT's LoRA does; other formats keep no recipe beside the weight, and say so.
"""

from typing import Any, cast

from torch import Tensor, nn

from moe_adapt.tuner.peft_plugin import bnb_weight

__all__ = ["add_to_weight", "is_quantized"]


def is_quantized(layer: nn.Module) -> bool:
    """Return whether the layer's weight is stored quantised: no plain floating-point tensor."""
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        return True
    return type(weight).__module__.startswith("torchao") or type(weight.data).__module__.startswith("torchao")


def add_to_weight(layer: nn.Module, delta: Tensor, site: str) -> Tensor:
    """Return the weight of a quantised layer with a change added, in floating point, and store it.

    Args:
        layer: The layer.
        delta: The change, [o, d].
        site: Its path, for the message.

    Raises:
        NotImplementedError: If the format cannot be written again.
    """
    kind = type(layer).__name__
    if kind not in ("Linear4bit", "Linear8bitLt") or not type(layer).__module__.startswith("bitsandbytes"):
        weight = getattr(layer, "weight", None)
        stored = f" ({type(weight.data).__name__})" if isinstance(weight, Tensor) else ""
        raise NotImplementedError(
            f"{site} is a {kind}{stored}, a quantised weight that cannot take a merged adapter; keep the "
            "adapter beside it, or export one ordinary LoRA (`moe-adapt export --form merged`)."
        )
    import bitsandbytes as bnb

    base, kinds = cast(Any, layer), cast(Any, bnb.nn)
    weight = base.weight
    merged = bnb_weight(base)
    merged = merged + delta.to(merged)
    if kind == "Linear8bitLt":
        new = kinds.Int8Params(merged.cpu(), requires_grad=False, has_fp16_weights=weight.has_fp16_weights)
        base.weight = new.to(weight.device)
        base.state.reset_grads()
        return merged
    options = {
        name: getattr(weight, name)
        for name in ("blocksize", "compress_statistics", "quant_type", "quant_storage", "module")
    }
    base.weight = kinds.Params4bit(merged.cpu(), requires_grad=False, **options).to(weight.device)
    return merged
