"""Procedures: training steps that take more than one pass (`--model.procedure NAME`)."""

from moe_adapt.training.procedures.adversarial import AdvMoE
from moe_adapt.training.procedures.base import PROCEDURES, Procedure, aux_loss, update
from moe_adapt.training.procedures.gate_policy import GatePolicy
from moe_adapt.training.procedures.two_pass import TwoPass
from moe_adapt.training.procedures.unlearning import Unlearn

__all__ = ["PROCEDURES", "AdvMoE", "GatePolicy", "Procedure", "TwoPass", "Unlearn", "aux_loss", "update"]
