"""Logit modifiers: what happens to logits between scorer and selector."""

from moe_adapt.routing.modifiers.bip_balance import BipBalance
from moe_adapt.routing.modifiers.condense_bias import CondenseBias
from moe_adapt.routing.modifiers.expert_groups import ExpertGroups
from moe_adapt.routing.modifiers.growing_candidates import GrowingCandidates
from moe_adapt.routing.modifiers.noise import GaussianNoise
from moe_adapt.routing.modifiers.norm_router import NormRouter
from moe_adapt.routing.modifiers.offset import Offset
from moe_adapt.routing.modifiers.sample_score import SampleScore
from moe_adapt.routing.modifiers.temperature import Temperature
from moe_adapt.routing.modifiers.token_assignment import TokenAssignmentModifier
from moe_adapt.routing.modifiers.twin_exclusive import TwinExclusive

__all__ = [
    "BipBalance",
    "CondenseBias",
    "ExpertGroups",
    "GaussianNoise",
    "GrowingCandidates",
    "NormRouter",
    "Offset",
    "SampleScore",
    "Temperature",
    "TokenAssignmentModifier",
    "TwinExclusive",
]
