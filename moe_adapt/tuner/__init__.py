"""The PEFT tuner; importing this package registers the adapter type ``ROUTED_LORA``."""

from moe_adapt.tuner.aux_losses import anchor_routing
from moe_adapt.tuner.callback import RoutingCallback
from moe_adapt.tuner.config import RoutedLoraConfig
from moe_adapt.tuner.edit import (
    add_experts,
    duplicate_experts,
    freeze_experts,
    merge_experts,
    prune_experts,
)
from moe_adapt.tuner.hooks import ModelHooks
from moe_adapt.tuner.layer import RoutedLoraLayer
from moe_adapt.tuner.methods import METHODS
from moe_adapt.tuner.mixed_lora import MixedLoraBatches
from moe_adapt.tuner.model import RoutedLoraModel
from moe_adapt.tuner.peft_plugin import register_method
from moe_adapt.tuner.resize import duplicate_to, merge_to, prune_to, rehome_to
from moe_adapt.tuner.summary import AdapterSummary

__all__ = [
    "METHODS",
    "AdapterSummary",
    "MixedLoraBatches",
    "ModelHooks",
    "RoutedLoraConfig",
    "RoutedLoraLayer",
    "RoutedLoraModel",
    "RoutingCallback",
    "add_experts",
    "anchor_routing",
    "duplicate_experts",
    "duplicate_to",
    "freeze_experts",
    "merge_experts",
    "merge_to",
    "prune_experts",
    "prune_to",
    "rehome_to",
]

register_method(RoutedLoraConfig, RoutedLoraModel)
