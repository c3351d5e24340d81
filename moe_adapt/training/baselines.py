"""The baseline of every comparison: one plain LoRA per layer, with as many trainable parameters.

At a layer with `d` inputs and `o` outputs, `E` experts of rank `r` and a linear router have
`E r (d + o) + E d` parameters; a LoRA of rank `r'` has `r' (d + o)`. So `r' = E r + E d / (d + o)`, rounded.
"""

import re

from peft import PeftModel

from moe_adapt.tuner import RoutedLoraConfig, RoutedLoraLayer
from moe_adapt.tuner.loading import is_adapter_key

__all__ = ["equal_parameter_lora", "equal_parameter_rank"]


def equal_parameter_rank(parameters: int, in_features: int, out_features: int) -> int:
    """Return the rank of the LoRA with about `parameters` parameters, at least 1.

    Args:
        parameters: Trainable parameters of the mixture at the layer, router included.
        in_features: Inputs of the layer, `d`.
        out_features: Outputs of the layer, `o`.

    >>> equal_parameter_rank(6 * 4 * (384 + 1536) + 6 * 384, 384, 1536)
    25
    """
    return max(1, round(parameters / (in_features + out_features)))


def equal_parameter_lora(model: PeftModel) -> RoutedLoraConfig:
    """Return the configuration of a plain LoRA at the same layers, of equal size, scale and dropout.

    Args:
        model: A model with one active routed-LoRA adapter, all of it trainable.
    """
    adapter = model.active_adapter
    config = model.peft_config[adapter]
    assert isinstance(config, RoutedLoraConfig)
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for layer in model.modules():
        if isinstance(layer, RoutedLoraLayer) and adapter in layer.specs:
            own = [name for name, _ in layer.named_parameters() if is_adapter_key(name)]
            own = [name for name in own if name.endswith(f".{adapter}")]
            parameters = sum(layer.get_parameter(name).numel() for name in own)
            pattern = rf"(^|\.){re.escape(layer.site)}$"
            ranks[pattern] = equal_parameter_rank(parameters, layer.in_features, layer.out_features)
            scale = layer.specs[adapter].scale(config.use_rslora)
            alphas[pattern] = scale * (ranks[pattern] ** 0.5 if config.use_rslora else ranks[pattern])
    return RoutedLoraConfig(
        method="lora",
        target_modules=config.target_modules,
        exclude_modules=config.exclude_modules,
        r=ranks,
        alpha=alphas,
        use_rslora=config.use_rslora,
        dropout=config.dropout,
        task_type=config.task_type,
    )
