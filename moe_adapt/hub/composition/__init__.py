"""Many LoRAs in one model, chosen per input: build such an adapter, add to it, take from it, evaluate it."""

from moe_adapt.hub.composition.build import Composer, ComposeReport, compose
from moe_adapt.hub.composition.edit import add_adapter, remove_adapter, router_of
from moe_adapt.hub.composition.evaluate import Evaluation, evaluate

__all__ = [
    "ComposeReport",
    "Composer",
    "Evaluation",
    "add_adapter",
    "compose",
    "evaluate",
    "remove_adapter",
    "router_of",
]
