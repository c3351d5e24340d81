"""The only file that touches PEFT's internals: the adapter type ``ROUTED_LORA`` and a few private helpers.

PEFT knows adapter types through a closed string enum and offers no entry point. `register_method` adds a
member to the enum's tables and then registers the classes the ordinary way; a self-test follows at once, so
that a PEFT or Python release that changes the tables fails here with one clear sentence and nowhere else.
"""

import math
import platform
from collections.abc import Sequence
from typing import Any, cast

import peft
import torch
from peft import PeftModel, PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, check_adapters_to_merge
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from peft.utils.integrations import dequantize_bnb_weight
from peft.utils.other import AuxiliaryTrainingWrapper
from peft.utils.peft_types import register_peft_method
from torch import nn
from transformers.pytorch_utils import Conv1D

from moe_adapt.errors import UserError

__all__ = [
    "PEFT_TYPE",
    "PREFIX",
    "AdapterLayer",
    "AuxiliaryTrainingWrapper",
    "BaseTuner",
    "BaseTunerLayer",
    "BufferDict",
    "bnb_weight",
    "check_adapters_to_merge",
    "default_target_modules",
    "is_supported_layer",
    "layer_shape",
    "linear_lora_layers",
    "register_method",
]

PEFT_TYPE = "ROUTED_LORA"
PREFIX = "moe_adapt_"
#: Quantised layers that are no `nn.Linear`, by the names of their classes: HQQ, GPTQ, AWQ, EETQ, AQLM.
_QUANTIZED = ("HQQLinear", "EetqLinear", "QuantizedLinear", "WQLinear_GEMM", "WQLinear_GEMV")


class AdapterLayer(BaseTunerLayer):
    """A layer with adapters whose tensors keep their dtype wherever they are moved.

    PEFT's version casts to the dtype of the base, up to 0.20 even what is no floating-point number.
    """

    def _move_adapter_to_device_of_base_layer(
        self, adapter_name: str, device: torch.device | None = None
    ) -> None:
        """Move an adapter's tensors to a device."""
        if device is None:
            device, _ = self._get_base_layer_device_and_dtype(self.get_base_layer())
        if device is None or device.type == "meta":
            return
        for name in self.adapter_layer_names + self.other_param_names:
            container = getattr(self, name)
            if isinstance(container, nn.ParameterDict | BufferDict) and adapter_name in container:
                value = container[adapter_name]
                if value.device.type != "meta" and value.device != device:
                    container[adapter_name] = value.to(device)


def _add_peft_type(name: str) -> PeftType:
    if name in PeftType.__members__:
        return PeftType[name]
    member = str.__new__(PeftType, name)
    member._name_ = name
    member._value_ = name
    member.__objclass__ = PeftType  # type: ignore[attr-defined]
    PeftType._member_map_[name] = member
    PeftType._member_names_.append(name)
    PeftType._value2member_map_[name] = member
    type.__setattr__(PeftType, name, member)
    return member


def register_method(config_cls: type, model_cls: type) -> PeftType:
    """Register the adapter type with PEFT; calling it again (a reloaded module) replaces the classes.

    Args:
        config_cls: The configuration class.
        model_cls: The tuner class.

    Raises:
        UserError: If this PEFT or Python release does not take the new type.
    """
    try:
        peft_type = _add_peft_type(PEFT_TYPE)
        for table in (PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING):
            table.pop(peft_type, None)
        register_peft_method(
            name=PEFT_TYPE.lower(), config_cls=config_cls, model_cls=model_cls, prefix=PREFIX
        )
        registered = (
            PeftType(PEFT_TYPE) is peft_type
            and peft_type in list(PeftType)
            and PEFT_TYPE_TO_CONFIG_MAPPING[peft_type] is config_cls
            and PEFT_TYPE_TO_TUNER_MAPPING[peft_type] is model_cls
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _registration_error(str(error)) from error
    missing = _missing_interface()
    if missing:
        raise _registration_error(f"it has no {', '.join(missing)}")
    if not registered:
        raise _registration_error("the enum did not take the new member")
    return peft_type


#: What this package overrides or calls beside PEFT's public interface.
_INTERFACE: dict[type, tuple[str, ...]] = {
    BaseTuner: ("_create_and_replace", "_pre_injection_hook", "_prepare_adapter_config", "inject_adapter"),
    BaseTunerLayer: (
        "_cast_input_dtype",
        "_get_base_layer_device_and_dtype",
        "_move_adapter_to_device_of_base_layer",
        "adapter_layer_names",
        "other_param_names",
    ),
    PeftModel: ("_enable_peft_forward_hooks", "load_adapter", "save_pretrained"),
}


def _missing_interface() -> list[str]:
    """Return which parts of PEFT that this package builds on are gone, by name."""
    return [
        f"{owner.__name__}.{name}"
        for owner, names in _INTERFACE.items()
        for name in names
        if not hasattr(owner, name)
    ]


def _registration_error(reason: str) -> UserError:
    return UserError(
        f"the adapter type {PEFT_TYPE} cannot be registered with PEFT {peft.__version__} on Python "
        f"{platform.python_version()} ({reason}); moe_adapt was tested with PEFT 0.20 to 0.21: install one "
        "of these, or a newer moe-adapt."
    )


def default_target_modules(model_type: str) -> Sequence[str] | None:
    """Return the layers that PEFT's LoRA adapts by default in a transformers architecture, if it knows it."""
    return TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(model_type)


def bnb_weight(layer: nn.Module) -> torch.Tensor:
    """Return the weight of a bitsandbytes layer in floating point, [o, d]."""
    base = cast(Any, layer)
    if hasattr(base.weight, "quant_state"):
        base.state_dict()  # undoes the packing that inference on a CPU leaves in the weight
        return dequantize_bnb_weight(base.weight, state=base.weight.quant_state)
    if base.state.SCB is None:
        base.state.SCB = base.weight.SCB
    return dequantize_bnb_weight(base.weight, state=base.state)


def _is_quantized_linear(layer: nn.Module) -> bool:
    """Return whether a layer is a quantised linear layer that is no `nn.Linear`."""
    name = type(layer).__name__
    known = name in _QUANTIZED or name.endswith("QuantLinear")
    sides = (getattr(layer, "in_features", None), getattr(layer, "out_features", None))
    return known and all(isinstance(side, int) for side in sides)


def is_supported_layer(layer: nn.Module) -> bool:
    """Return whether a layer is an `nn.Linear`, a quantised linear layer or GPT-2's `Conv1D`."""
    if isinstance(layer, nn.Linear):
        return type(layer).__name__ != "NonDynamicallyQuantizableLinear"
    return isinstance(layer, Conv1D) or _is_quantized_linear(layer)


def layer_shape(layer: nn.Module) -> tuple[int, int]:
    """Return in-features and out-features of a supported layer; a convolution maps patches to channels."""
    if isinstance(layer, nn.Conv2d):
        return layer.in_channels * math.prod(layer.kernel_size), layer.out_channels
    if isinstance(layer, Conv1D):
        return layer.weight.shape[0], layer.nf
    return layer.in_features, layer.out_features  # type: ignore[return-value]


def linear_lora_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers of PEFT's own LoRA that adapt a supported layer, by path."""
    layers = {}
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer) and is_supported_layer(module.get_base_layer()):
            layers[name] = cast(nn.Module, module)
    return layers
