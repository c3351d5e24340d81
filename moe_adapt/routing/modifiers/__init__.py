"""Logit modifiers: what happens to logits between scorer and selector."""

from moe_adapt.routing.modifiers.noise import GaussianNoise
from moe_adapt.routing.modifiers.temperature import Temperature
from moe_adapt.routing.modifiers.token_assignment import TokenAssignmentModifier

__all__ = ["GaussianNoise", "Temperature", "TokenAssignmentModifier"]
