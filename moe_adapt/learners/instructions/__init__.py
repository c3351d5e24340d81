"""Learners of instructions: SAME, DyMoE, and what they are compared with."""

from moe_adapt.learners.instructions.base import (
    InstructionLearner,
    JointInstructions,
    NoTraining,
    SequentialInstructions,
)
from moe_adapt.learners.instructions.composing import ComposeInstructions
from moe_adapt.learners.instructions.dymoe import DyMoE
from moe_adapt.learners.instructions.olora import OLoRA
from moe_adapt.learners.instructions.prototypes import PrototypeLoRA
from moe_adapt.learners.instructions.rehearsal import ReplayInstructions, RoutingAnchor
from moe_adapt.learners.instructions.same import SAME

__all__ = [
    "SAME",
    "ComposeInstructions",
    "DyMoE",
    "InstructionLearner",
    "JointInstructions",
    "NoTraining",
    "OLoRA",
    "PrototypeLoRA",
    "ReplayInstructions",
    "RoutingAnchor",
    "SequentialInstructions",
]
