"""Many LoRAs in one model, chosen per input: build such an adapter, add to it, take from it, evaluate it."""

from moe_adapt.hub.composition.build import Composer, ComposeReport, compose
from moe_adapt.hub.composition.edit import add_adapter, remove_adapter

__all__ = ["ComposeReport", "Composer", "add_adapter", "compose", "remove_adapter"]
